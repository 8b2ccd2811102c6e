"""A QEMU whose monitor lies: an error of the source, never a bug of ours, and no harm done.

Each run meets one wrong answer out of `tests.hostile.qmp_liar`. Which ones is chosen by a seed;
`FLEECE_LIES` asks for more of them than are tried by default, `FLEECE_SEED` for others.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.scene import GUEST, KIB64, MIB, MachineScene, Ran, Scene, wait_until
from tests.hostile.qmp_liar import GREETING, Kind, Liar, Lie, lying, sample
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine

_LIES = int(os.environ.get("FLEECE_LIES", "0"))
_SEED = int(os.environ.get("FLEECE_SEED", "1"))
_FAMILIES = {0, 2, 3, 4, 5, 6}
"""Exit codes that docs/reference/exit-codes.rst has for what can go wrong here; 1 is a bug."""

_COUNTS = {"doctor": 28, "clean": 14, "bitmap": 14, "audit": 14, "backup": 28}


def _words(scene: Scene, verb: str, path: Path) -> tuple[object, ...]:
    source = f"qmp:{path}"
    place = ("--guest", GUEST, "--scratch", scene.scratch, "--json")
    return {
        "doctor": ("doctor", source, "--json"),
        "clean": ("clean", source, "--scratch", scene.scratch, "--json"),
        "bitmap": ("bitmap", source, scene.store, "--json"),
        "audit": ("audit", source, scene.store, *place),
        "backup": ("backup", source, scene.store, *place),
    }[verb]


def _run(scene: Scene, verb: str, lie: Lie | None) -> tuple[Ran, Liar]:
    path = scene.qemu.folder / "liar.sock"
    with lying(path, scene.qemu.qmp_socket, lie) as liar:
        ran = scene.engine.run(*_words(scene, verb, path))
    return ran, liar


def _well_ended(ran: Ran, lie: Lie) -> None:
    assert ran.code in _FAMILIES, f"{lie}: exit code {ran.code}\n{ran.out}{ran.err}"
    assert ran.err == "", f"{lie}: {ran.err}"
    if ran.code:
        ran.failed(ran.code)


def _next_is_right(scene: Scene, lie: Lie) -> None:
    """The QEMU still works, and an honest backup of it is exact and cleans up."""
    scene.writer().write(0, os.urandom(KIB64))
    ran = scene.backup()
    assert ran.code == 0, f"after {lie}: {ran.out}{ran.err}"
    assert ran.result["mode"] in ("incremental", "rescan"), f"after {lie}: {ran.result}"
    scene.check_exact()
    scene.nothing_left()


@pytest.mark.parametrize("verb", sorted(_COUNTS))
def test_no_lie_is_a_bug_or_does_harm(verb: str, scene: Scene) -> None:
    scene.take()
    honest, liar = _run(scene, verb, None)
    honest.succeeded()
    told = 0
    for lie in sample(liar.heard, _LIES or _COUNTS[verb], _SEED):
        if verb == "backup":
            scene.writer().write(KIB64, os.urandom(KIB64))
        ran, liar = _run(scene, verb, lie)
        told += liar.told.is_set()
        _well_ended(ran, lie)
        if verb in ("backup", "audit", "clean"):
            _next_is_right(scene, lie)
    assert told > len(sample(liar.heard, _LIES or _COUNTS[verb], _SEED)) // 2


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("query-block", Kind.DROPPED),
        ("query-block", Kind.NO_ID),
        ("transaction", Kind.DROPPED),
        ("block-export-add", Kind.OTHER_ID),
        (GREETING, Kind.DROPPED),
    ],
)
def test_a_signal_ends_the_wait_for_an_answer(command: str, kind: Kind, scene: Scene) -> None:
    scene.take()
    lie = Lie(command, 0, kind, 0)
    with lying(scene.qemu.folder / "liar.sock", scene.qemu.qmp_socket, lie) as liar:
        running = scene.engine.command(*_words(scene, "backup", liar.path))
        wait_until(liar.told.is_set, "the answer to be dropped")
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGTERM)
        ran = running.wait()
    if command != GREETING:
        ran.failed(130, "interrupted")
    _next_is_right(scene, lie)


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[MachineScene]:
    """A running machine with two disks, held by filters: their moment needs a stop of the guest."""
    disks = [Disk(images.random_image(tmp_path / f"{n}.qcow2", 2 * MIB, seed=1), n) for n in _TWO]
    with Machine(disks) as qemu:
        qemu.control.command("cont")
        made = MachineScene(qemu, tmp_path)
        made.way = ("--fleecing", "filter")
        yield made


_TWO = ("d0", "d1")
_VITAL = tuple(
    Lie(command, 0, kind, 0)
    for command in ("stop", "qom-set", "cont")
    for kind in (Kind.CLOSED, Kind.ERROR, Kind.GARBAGE)
)
"""Where the guest's life hangs on the answer."""
_OF_MACHINES = 6


def test_no_lie_leaves_a_guest_stopped_or_below_a_filter(twin: MachineScene) -> None:
    twin.take()
    honest, liar = _run_filter(twin, None)
    honest.succeeded()
    assert liar.heard.keys() > {"stop", "cont", "qom-set"}
    lies = [*_VITAL, *sample(liar.heard, _LIES or _OF_MACHINES, _SEED)]
    told = 0
    for lie in lies:
        for node in _TWO:
            twin.writer(node).write(KIB64, os.urandom(KIB64))
        ran, liar = _run_filter(twin, lie)
        told += liar.told.is_set()
        _well_ended(ran, lie)
        assert twin.status == "running" or "may still be" in ran.out, f"{lie}: {ran}"
        _run_filter(twin, None)[0].succeeded()
        twin.check_exact()
        twin.nothing_left()
        assert twin.status == "running", lie
        assert twin.plugged() == [*_TWO], lie
    assert told > len(lies) // 2


def _run_filter(scene: MachineScene, lie: Lie | None) -> tuple[Ran, Liar]:
    """Back up; always through a liar, so that QEMU seems to be one and the same process."""
    path = scene.qemu.folder / "liar.sock"
    with lying(path, scene.qemu.qmp_socket, lie) as liar:
        place = ("--guest", GUEST, "--scratch", scene.scratch, "--json")
        ran = scene.engine.run("backup", f"qmp:{path}", scene.store, *place, *scene.way)
    return ran, liar
