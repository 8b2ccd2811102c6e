"""Points that QEMU pushes: exact as those that are pulled, and no danger to a guest's iothreads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleece
from fleece.engine.backup import push
from fleece.engine.work.pool import run_workers
from fleece.events import Event, Listener, ignore
from fleece.extents import Extents
from fleece.nbd import nbdkit
from fleece.nbd.handover import Channel
from fleece.nbd.sink import NbdSink
from fleece.source.qemu.plan import GRANULARITY
from fleece.source.qemu.push import PushJobs, bitmap_hash
from tests.engine.matrix import SIZES
from tests.engine.scene import (
    INTACT,
    KIB64,
    MIB,
    MachineScene,
    Moment,
    Mutation,
    Running,
    Scene,
    small_tmpfs,
    wait_until,
)
from tests.rig import consistency, images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine, Machine
from tests.rig.process import LIMIT
from tests.rig.qemu import QemuProcess
from tests.rig.writer import Writer

PUSH = ("--transport", "push")


def affected(qemu: QemuProcess) -> bool:
    """A lost NBD connection ends this QEMU if an iothread serves the disk: pushed by itself."""
    return qemu.version < (8, 2, 3)


@pytest.fixture
def iothreads(tmp_path: Path) -> Iterator[MachineScene]:
    """A running machine whose two disks have iothreads: 32 MiB of data, and a raw odd one."""
    first = images.random_image(tmp_path / "d0.qcow2", 32 * MIB, seed=1, fill=1.0)
    second = images.random_image(tmp_path / "d1.raw", SIZES["d1"], seed=2, fmt="raw")
    disks = [Disk(first, "d0"), Disk(second, "d1", "raw")]
    with Machine(disks, monitors=2, iothreads=True) as qemu:
        qemu.control.command("cont")
        scene = MachineScene(qemu, tmp_path)
        scene.way = () if affected(qemu) else PUSH
        yield scene


@contextmanager
def _writing(writer: Writer, size: int) -> Iterator[Callable[[], int]]:
    """Write all the while; gives how many writes have ended."""
    count = 0
    done = threading.Event()

    def write() -> None:
        nonlocal count
        numbers = np.random.default_rng(3)
        while not done.is_set():
            writer.write(int(numbers.integers(size // 512)) * 512, numbers.bytes(512))
            count += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: count
    finally:
        done.set()
        thread.join()


# ---- exact -----------------------------------------------------------------------------------


def test_every_mode_is_exact_in_turn_with_points_that_are_pulled(pair: Scene) -> None:
    pair.backup(*PUSH).succeeded()
    pair.check_exact()
    numbers = iter(range(100))
    for mode in ("incremental", "differential", "rescan", "full", "auto"):
        for transport in ("push", "pull"):
            number = next(numbers)
            pair.writer("d0").write(number * 200_704, os.urandom(5000))
            pair.writer("d0").zero(number * KIB64, KIB64, unmap=bool(number % 2))
            pair.writer("d1").write(4 * MIB, os.urandom(512))
            ran = pair.backup("--mode", mode, "--transport", transport).succeeded()
            assert ran.result["transport"] == transport
            assert ran.result["mode"] == ("incremental" if mode == "auto" else mode)
            pair.check_exact()
            pair.nothing_left()
    pair.only_newest_segment()
    pair.verify()


def test_only_what_changed_is_pushed(pair: Scene) -> None:
    pair.backup(*PUSH).succeeded()
    pair.writer("d0").write(3 * MIB + 5, b"x" * 10)
    first, second = pair.backup(*PUSH).succeeded().result["disks"]
    assert (first["read_bytes"], first["dirty_bytes"]) == (KIB64, KIB64)
    assert (second["read_bytes"], second["dirty_bytes"]) == (0, 0)


def test_what_is_zeroed_is_stored_as_zeros(scene: Scene) -> None:
    scene.backup(*PUSH).succeeded()
    scene.writer().zero(0, 2 * MIB, unmap=True)
    (disk,) = scene.backup(*PUSH).succeeded().result["disks"]
    assert disk["dirty_bytes"] == 2 * MIB
    assert disk["stored_bytes"] < KIB64
    scene.check_exact()


def test_deltas_are_the_same_as_those_that_are_pulled(scene: Scene, tmp_path: Path) -> None:
    """Roots and data; the header's words and the order of records differ."""
    roots = []
    for transport in ("push", "pull"):
        store = tmp_path / transport
        (disk,) = scene.backup("--transport", transport, store=store).succeeded().result["disks"]
        roots.append((disk["root"], disk["dirty_bytes"]))
    assert roots[0] == roots[1]


def test_an_encrypted_store_takes_it(scene: Scene, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    scene.init("--encrypt", "--key-file", key)
    scene.backup(*PUSH, "--key-file", key).succeeded()
    scene.writer().write(0, b"y" * KIB64)
    scene.backup(*PUSH, "--key-file", key).succeeded()
    scene.engine.run("verify", scene.store, "--key-file", key).succeeded()


def test_a_stream_takes_it(scene: Scene, tmp_path: Path) -> None:
    words = ["backup", scene.source, scene.place(), "--scratch", scene.scratch, "--output", "-"]
    command = [sys.executable, "-m", "fleece", *map(str, words), *PUSH]
    piped = tmp_path / "piped.fleece"
    with piped.open("wb") as output:
        subprocess.run(command, cwd=scene.engine.root, stdout=output, check=True)
    with piped.open("rb") as taken:
        command = [sys.executable, "-m", "fleece", "import", str(scene.store)]
        subprocess.run(command, cwd=scene.engine.root, stdin=taken, check=True)
    scene.check_exact()


def test_auto_pulls_where_that_is_safe(scene: Scene) -> None:
    assert scene.backup().succeeded().result["transport"] == "pull"


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--audit", "0.5"), "an audit reads"), (("--fleecing", "filter"), "held by jobs")],
)
def test_what_cannot_be_pushed_is_refused(
    pair: Scene, words: tuple[str, ...], message: str
) -> None:
    pair.backup().succeeded()
    pair.backup(*PUSH, *words).failed(2, message)
    pair.nothing_left()


# ---- iothreads -------------------------------------------------------------------------------


def test_a_guest_with_iothreads_is_pushed_by_itself_and_says_why(iothreads: MachineScene) -> None:
    if not affected(iothreads.qemu):
        pytest.skip("this QEMU is not affected")
    ran = iothreads.backup().succeeded()
    assert ran.result["transport"] == "push"
    assert all("iothread" in plan["reason"] for plan in ran.named("plan"))
    iothreads.backup("--transport", "pull").failed(4, "iothread")
    iothreads.check_exact()


def test_a_guest_with_iothreads_survives_backups_while_it_writes(
    iothreads: MachineScene,
) -> None:
    """`tools/killmatrix --iothreads` does many more; a pulled one would have killed it."""
    with _writing(iothreads.writer("d0"), 32 * MIB):
        for _ in range(5):
            iothreads.backup().succeeded()
    assert iothreads.status == "running"
    assert iothreads.backup().succeeded().result["mode"] == "incremental"
    iothreads.check_exact()
    iothreads.nothing_left()
    iothreads.verify()


_PUSH_JOBS, _SINK = "fleece.source.qemu.push", "fleece.nbd.sink"
_MOMENTS = (
    Moment("views added", _PUSH_JOBS, "PushJobs.add_views"),
    Moment("dirty bytes counted", _PUSH_JOBS, "PushJobs.dirty_bytes"),
    Moment("sink started", _SINK, "NbdSink.wait"),
    Moment("targets added", _PUSH_JOBS, "PushJobs._actions", "before"),
    Moment("jobs started", _PUSH_JOBS, "PushJobs.start"),
    *(
        Moment(f"request {nth}", "fleece.nbd.handover", "Channel.answer", "before", nth)
        for nth in (1, 9, 25)
    ),
    Moment("all came", _PUSH_JOBS, "PushJobs.end", "before"),
    Moment("sink ended", _PUSH_JOBS, "PushJobs.end"),
    Moment("all checked", "fleece.delta.writer", "DeltaWriter.finish", "before"),
    Moment("committed", "fleece.store.partial_point", "PartialPoint.commit"),
)


def test_an_engine_that_is_killed_in_a_push_takes_no_guest_along(
    iothreads: MachineScene,
) -> None:
    """At steps of the control plane, and in the stream of requests."""
    iothreads.backup().succeeded()
    for moment in _MOMENTS:
        # Enough for so many requests.
        iothreads.writer("d0").write(0, os.urandom((moment.nth + 5) * MIB))
        with _writing(iothreads.writer("d0"), 32 * MIB):
            iothreads.killed_backup(moment)
        assert iothreads.status == "running", moment
        ran = iothreads.backup().succeeded()
        assert ran.result["mode"] == "incremental", moment
        assert "scratch" in {found["kind"] for found in ran.named("leftover")}, moment
        iothreads.check_exact()
        iothreads.nothing_left()
    iothreads.only_newest_segment()
    iothreads.verify()


def test_disks_of_one_moment_in_a_real_guest_with_iothreads(
    files: GuestFiles, tmp_path: Path
) -> None:
    disks = [
        Disk(images.make_disk(tmp_path / "d0.qcow2", 64 * MIB, fs="ext4"), "d0"),
        Disk(images.make_disk(tmp_path / "d1.qcow2", 64 * MIB, fs="ext4"), "d1"),
    ]
    append = "rig.nslots=64 rig.delay=1000"
    with GuestMachine(files, disks, append=append, iothreads=True) as machine:
        scene = MachineScene(machine, tmp_path)
        scene.way = () if affected(machine) else PUSH
        machine.wait_ready()
        machine.wait_acked(20)
        acked = []
        for _ in range(3):
            acked.append(machine.acked)
            assert scene.backup().succeeded().result["transport"] == "push"
            machine.wait_acked(machine.acked + 20)
        assert scene.status == "running"
        scene.nothing_left()
        # Once QEMU did not answer to quit under these writes; nothing of it is needed any more.
        machine.kill()
    for number, point in enumerate(fleece.open_store(scene.store).catalogue().points):
        restored = [scene.restore(node, point.id) for node in ("d0", "d1")]
        assert consistency.check(restored, acked=acked[number]).problems == []


# ---- failures --------------------------------------------------------------------------------


def _sink_of(scene: Scene) -> int:
    """The process id of the nbdkit that a backup of a scene started."""
    (place,) = scene.scratch.glob("fleece-*/sink.nbd")
    found = subprocess.run(["pgrep", "-f", f"nbdkit .*{place}"], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def _slow_push(scene: Scene) -> Running:
    """A backup that takes in a request a second on each channel, when it has begun to."""
    scene.writer().write(0, os.urandom(8 * MIB))
    running = scene.slow("fleece.nbd.handover", "Channel.answer", 1000, *scene.words(*PUSH))
    running.wait_event("progress")
    return running


def test_a_sink_that_is_killed_costs_the_backup_alone(scene: Scene) -> None:
    running = _slow_push(scene)
    os.kill(_sink_of(scene), signal.SIGKILL)
    running.wait().failed(4, "sink")
    scene.nothing_left()
    scene.backup(*PUSH).succeeded()
    scene.check_exact()


def _push_jobs(scene: Scene) -> list[str]:
    jobs = scene.qemu.control.command("query-jobs")
    return [job["id"] for job in jobs if "p0" in job["id"]]


def test_somebody_who_ends_the_push_job_costs_the_backup_alone(scene: Scene) -> None:
    running = _slow_push(scene)
    # The first progress may be told before the job is there.
    wait_until(lambda: bool(_push_jobs(scene)), "a push job")
    (name,) = _push_jobs(scene)
    scene.qemu.control.command("block-job-cancel", {"device": name, "force": True})
    running.wait().failed(4, "push job")
    scene.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_all_down(scene: Scene, number: signal.Signals) -> None:
    running = _slow_push(scene)
    running.signal(number)
    running.wait().failed(130)
    scene.nothing_left()
    scene.backup(*PUSH).succeeded()
    scene.check_exact()


def test_a_full_store_costs_the_backup_alone(scene: Scene) -> None:
    scene.writer().write(0, os.urandom(8 * MIB))
    with small_tmpfs(2) as small:
        scene.backup(*PUSH, store=small / "store").failed(5, "space")
        scene.nothing_left()
    scene.backup(*PUSH).succeeded()
    scene.check_exact()


def test_an_engine_that_stands_still_keeps_no_guest_waiting(iothreads: MachineScene) -> None:
    """The guest writes to its disk and to the scratch, and never waits for the sink."""
    writer = iothreads.writer("d0")
    running = iothreads.slow("fleece.nbd.handover", "Channel.answer", 100, *iothreads.words())
    running.wait_event("progress")
    running.signal(signal.SIGSTOP)
    with _writing(writer, 32 * MIB) as written:
        wait_until(lambda: written() > 200, "the guest's writes")
    running.signal(signal.SIGKILL)
    running.wait()
    assert iothreads.status == "running"
    iothreads.backup().succeeded()
    iothreads.check_exact()


def _drain(scene: Scene) -> None:
    """A transaction drains all disks: it waits for what jobs have in flight."""
    added = {"node": "d0", "name": "other"}
    action = {"type": "block-dirty-bitmap-add", "data": added}
    scene.qemu.control.command("transaction", {"actions": [action]})
    scene.qemu.control.command("block-dirty-bitmap-remove", added)


def test_a_listener_that_blocks_keeps_qemu_waiting_for_nothing(scene: Scene) -> None:
    blocked, free = threading.Event(), threading.Event()

    def listen(event: Event) -> None:
        if event.name == "progress":
            blocked.set()
            free.wait()

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(_pushed, scene, listener=listen, rate=2 * MIB)
        try:
            assert blocked.wait(60)
            for _ in range(3):
                _drain(scene)
            assert not taken.done()
        finally:
            free.set()
        taken.result()
    scene.check_exact()


def test_the_sink_is_served_before_qemu_begins_to_push(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second backup's transaction may come at once, and this one waits for an answer of QEMU."""
    begun, drained = threading.Event(), threading.Event()
    start = PushJobs.start

    def held(jobs: PushJobs) -> object:
        result: object = start(jobs)
        begun.set()
        assert drained.wait(60)
        return result

    monkeypatch.setattr(PushJobs, "start", held)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(_pushed, scene)
        assert begun.wait(60)
        _drain(scene)
        drained.set()
        taken.result()
    scene.check_exact()


def _pushed(
    scene: Scene,
    cancel: fleece.CancelToken | None = None,
    listener: Listener = ignore,
    rate: int | None = None,
) -> fleece.BackupResult:
    """By the library, in this process."""
    options = fleece.BackupOptions(transport=fleece.TransportWish.PUSH, rate=rate)
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        return fleece.backup(source, scene.opened(), options, listener, cancel)


def test_a_store_that_stands_still_costs_the_backup(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_PATIENCE", 0.5)
    append, shut, given_up = fleece.DeltaWriter.data, NbdSink.shut, threading.Event()

    def data(writer: fleece.DeltaWriter, *words: Any) -> None:
        assert given_up.wait(LIMIT)
        append(writer, *words)

    def give_up(sink: NbdSink) -> None:
        given_up.set()
        shut(sink)

    monkeypatch.setattr(NbdSink, "shut", give_up)
    monkeypatch.setattr(fleece.DeltaWriter, "data", data)
    with pytest.raises(fleece.PointError, match="took nothing for"):
        _pushed(scene)
    scene.nothing_left()


def test_a_cancel_that_only_some_workers_see_ends_all(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for requests that do not come any more."""

    def half(channels: Sequence[Channel], *words: Any) -> None:
        def shared() -> Iterator[Channel]:
            yield channels[0]
            cancel.cancel()
            yield from channels[1:]

        run_workers(shared(), *words)

    monkeypatch.setattr(push, "run_workers", half)
    cancel, ended = fleece.CancelToken(), threading.Event()

    def backup() -> None:
        with pytest.raises(fleece.Interrupted):
            _pushed(scene, cancel)
        ended.set()

    threading.Thread(target=backup, daemon=True).start()
    assert ended.wait(LIMIT)
    scene.nothing_left()


def test_a_rate_is_kept(scene: Scene) -> None:
    """QEMU keeps it; here only that it is asked for: 8 MiB at 4 MiB a second are not at once."""
    scene.writer().write(0, os.urandom(8 * MIB))
    start = time.monotonic()
    scene.backup(*PUSH, "--rate", "4M").succeeded()
    assert time.monotonic() - start > 1


# ---- nothing is lost on the way ----------------------------------------------------------------

_LOSES = Mutation(
    "a write gets lost",
    (
        (
            "engine/backup/push.py",
            "            self._store(start, data, packer)\n",
            "            if start == 0:\n                return\n"
            "            self._store(start, data, packer)\n",
        ),
    ),
)
_TWICE = Mutation(
    "a write comes twice",
    (
        (
            "engine/backup/push.py",
            "            self.received.add(start, end)\n",
            "            self.received.add(start, end)\n"
            "            self.received.add(start, end)\n",
        ),
    ),
)
_ELSEWHERE = Mutation(
    "a write comes elsewhere",
    (
        (
            "engine/backup/push.py",
            "            self.received.add(start, end)\n",
            "            self.received.add(start + 65536, end + 65536)\n",
        ),
    ),
)


@pytest.mark.parametrize("fault", [_LOSES, _TWICE, _ELSEWHERE], ids=str)
def test_what_does_not_come_as_it_must_is_noticed(
    scene: Scene, fault: Mutation, tmp_path: Path
) -> None:
    scene.backup().succeeded()
    scene.writer().write(0, os.urandom(3 * KIB64))
    scene.engine = fault.engine(tmp_path)
    scene.backup(*PUSH).failed(4)
    scene.nothing_left()
    scene.engine = INTACT
    scene.backup(*PUSH).succeeded()
    scene.check_exact()


def test_the_bitmaps_hash_is_qemus(scene: Scene) -> None:
    ask: Callable[..., object] = scene.qemu.control.command
    size = scene.qemu.control.command("query-named-block-nodes")[0]["image"]["virtual-size"]
    where = {"node": "d0", "name": "b"}
    ask("block-dirty-bitmap-add", where | {"granularity": GRANULARITY})
    chance = np.random.default_rng(5)
    dirty = Extents.empty()
    for _ in range(4):
        told = scene.qemu.control.command("x-debug-block-dirty-bitmap-sha256", where)["sha256"]
        assert bitmap_hash(dirty, size) == told
        leaf = int(chance.integers(size // KIB64))
        scene.writer().write(leaf * KIB64 + 7, b"z")
        dirty = dirty.union(Extents.of([(leaf * KIB64, (leaf + 1) * KIB64)]))
    assert bitmap_hash(dirty, size + 64 * 64 * KIB64) != bitmap_hash(dirty, size)


def test_a_host_without_nbdkit_says_what_to_install(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*words: str) -> str:
        raise fleece.UsageError("nbdkit is not installed")

    monkeypatch.setattr(nbdkit, "program", missing)
    with pytest.raises(fleece.UsageError, match="nbdkit"):
        _pushed(scene)
    scene.nothing_left()
