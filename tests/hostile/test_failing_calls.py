"""A system call fails: one clear error, nothing damaged or lost, and the next run does it.

`tools/failingcalls` tries every call of every verb; here it is some of each.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from errno import EIO, EMFILE, errorcode
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from fleece.engine.check import disk_map
from fleece.errors import ExitCode
from tests.engine.scene import Mutation, Ran
from tests.hostile import failing_qemu
from tests.hostile.failing_calls import (
    VERBS,
    Bench,
    Fault,
    Place,
    Trial,
    Verb,
    Wrong,
    bench,
    sample,
)
from tests.hostile.failing_qemu import Living, living
from tests.rig.process import run


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One bench for all."""
    with bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


def _named(name: str) -> Verb:
    (found,) = (verb for verb in VERBS if verb.name == name)
    return found


def _check(here: Place, *trials: Trial) -> None:
    for trial in trials:
        try:
            here.check(trial)
        except Wrong as wrong:
            pytest.fail(f"{trial}: {wrong}")


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_one_call_fails(verb: Verb, here: Bench) -> None:
    _check(here, *sample(here, 2, seed=1, verbs=(verb,)))


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    """One QEMU for all."""
    with living(tmp_path_factory.mktemp("qemu")) as made:
        yield made


@pytest.mark.parametrize("verb", failing_qemu.VERBS, ids=str)
def test_one_call_of_a_verb_with_a_qemu_fails(verb: Verb, qemu: Living) -> None:
    _check(qemu, *sample(qemu, 2, seed=1, verbs=(verb,)))


def test_a_program_that_cannot_be_run_is_no_bug(qemu: Living) -> None:
    (verb,) = (verb for verb in failing_qemu.VERBS if verb.name == "doctor")
    _check(qemu, *(trial for trial in qemu.trials(verb) if trial.fault.kind in ("pipe", "open")))


def test_a_socket_that_cannot_be_made_is_no_bug(qemu: Living) -> None:
    (verb,) = (verb for verb in failing_qemu.VERBS if verb.name == "push")
    trials = [trial for trial in qemu.trials(verb) if trial.fault.kind == "socket"]
    _check(qemu, *trials[len(trials) // 2 :])


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_salvage_cannot_read_is_tried_again_and_then_told(times: int, here: Bench) -> None:
    verb = _named("salvage")
    last = max(trial.fault.nth for trial in here.trials(verb) if trial.fault.kind == "read")
    places = (3, 4, last // 2, *range(168, 174), last)
    _check(here, *(Trial(verb, Fault("read", nth, EIO, times)) for nth in places))


def test_a_new_file_leaves_nothing_beside_it_untold(here: Bench) -> None:
    trials = here.trials(_named("salvage"))
    _check(here, *(trial for trial in trials if trial.fault.kind in ("stat", "unlink")))


def test_a_file_that_is_replaced_and_cannot_be_looked_at_is_no_bug(here: Bench) -> None:
    trials = [trial for trial in here.trials(_named("replace")) if trial.fault.kind == "stat"]
    _check(here, *trials[-8:])


def _failing(calls: str, error: int, paths: Sequence[Path | str], *words: str | Path) -> Ran:
    """Run `fleece WORDS`; these calls about these paths fail."""
    fault = [word for path in paths for word in ("-P", str(path))]
    fault += ["-e", f"trace={calls}", "-e", f"inject={calls}:error={errorcode[error]}"]
    command = ["strace", "-f", "-o", "/dev/null", *fault, sys.executable, "-m", "fleece"]
    done = run(*command, *words)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("error", [EMFILE, EIO])
def test_that_nobody_uses_a_target_is_not_guessed(error: int, here: Bench, tmp_path: Path) -> None:
    target = tmp_path / "used"
    target.write_bytes(b"of somebody")
    words = ("restore", here.kept / "store", "latest", "vda", target, "--force")
    with target.open("r+b") as used:
        user = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=used)
    with user:
        ran = _failing("openat,getdents64", error, [f"/proc/{user.pid}/fd"], *words)
    ran.failed(ExitCode.TARGET, "whether it is in use cannot be told")
    assert target.read_bytes() == b"of somebody"


@pytest.mark.parametrize("error", [EMFILE, EIO])
def test_a_part_of_the_program_that_cannot_be_loaded_is_no_bug(
    error: int, here: Bench, tmp_path: Path
) -> None:
    part = Path(disk_map.__file__)
    paths = (part, cache_from_source(str(part)))
    words = ("map", here.kept / "store", "latest", "vda", "--svg", tmp_path / "picture")
    ran = _failing("openat", error, paths, *words)
    ran.failed(ExitCode.USAGE, f"{part}: a part of the program cannot be loaded (")


_FAULT = Mutation(
    "what the system says is passed on as it is",
    (
        (
            "engine/work/new_file.py",
            "with target_errors(final):\n                dress(",
            "if True:\n                dress(",
        ),
    ),
)


def test_these_checks_can_fail(here: Bench, tmp_path: Path) -> None:
    trial = Trial(_named("restore"), Fault("sync", 2, EIO))
    assert not here.check(trial)
    (tmp_path / "broken").mkdir()
    with (
        bench(tmp_path / "broken", _FAULT.engine(tmp_path)) as broken,
        pytest.raises(Wrong, match="exit code 1"),
    ):
        broken.check(trial)
