"""Points held by filters: exact, given up before the guest suffers, and small scratches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import fleece
import fleece.engine.backup.fill_by_pull as engine
from fleece.engine.backup import reclaim
from fleece.events import Event
from fleece.extents import Extents
from fleece.fileblob import named_file
from fleece.nbd.connection import Connection
from fleece.source.base import Export
from fleece.source.place import Room
from fleece.source.qemu import hold_by_filters as filtered
from fleece.source.qemu import pause as still
from fleece.source.qemu.hold_by_filters import UNIT, FilterFleecing
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import PointNames
from fleece.source.qemu.pause import standing_still
from fleece.source.scratch import Scratch
from fleece.source.workfolder import Note, held_folder
from fleece.store.folder.sink import DeltaFile
from tests.engine.matrix import SIZES, Guest, Nursery, Write, control_steps
from tests.engine.scene import (
    INTACT,
    KIB64,
    MIB,
    ROOT,
    MachineScene,
    Moment,
    Mutation,
    Running,
    Scene,
    nothing_left,
    small_tmpfs,
    wait_until,
)
from tests.rig import consistency, images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine, Machine
from tests.rig.process import run_checked

FILTER = ("--fleecing", "filter")
CLASSIC = ("--fleecing", "classic")


@contextmanager
def _machine(folder: Path, *disks: Disk, run: bool = True) -> Iterator[MachineScene]:
    with Machine(disks, monitors=2) as qemu:
        if run:
            qemu.control.command("cont")
        made = MachineScene(qemu, folder)
        made.way = FILTER
        yield made


def _two_disks(folder: Path) -> tuple[Disk, Disk]:
    first = images.random_image(folder / "d0.qcow2", SIZES["d0"], seed=1)
    second = images.random_image(folder / "d1.raw", SIZES["d1"], seed=2, fmt="raw")
    return Disk(first, "d0"), Disk(second, "d1", "raw")


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[MachineScene]:
    """A running machine with a qcow2 disk and a raw one whose size is odd."""
    with _machine(tmp_path, *_two_disks(tmp_path)) as made:
        yield made


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[MachineScene]:
    """A running machine with a disk of 32 MiB of data."""
    image = images.random_image(tmp_path / "d0.qcow2", 32 * MIB, seed=1, fill=1.0)
    with _machine(tmp_path, Disk(image, "d0")) as made:
        yield made


def _live(scene: Scene, target: Path, node: str = "d0") -> Path:
    """What a disk holds now, raw."""
    scene.writer(node).flush()
    disk = scene.qemu.disks[node]
    run_checked("qemu-img", "convert", "-U", "-f", disk.fmt, "-O", "raw", disk.path, target)
    return target


# ---- exact -----------------------------------------------------------------------------------


def test_every_mode_is_exact_in_turn_with_classic_points(twin: MachineScene) -> None:
    twin.backup().succeeded()
    twin.check_exact()
    numbers = iter(range(100))
    for mode in ("incremental", "differential", "rescan", "full"):
        for twin.way in (FILTER, CLASSIC):
            number = next(numbers)
            twin.writer("d0").write(number * 200_704, os.urandom(5000))
            twin.writer("d0").zero(number * KIB64, KIB64, unmap=bool(number % 2))
            twin.writer("d1").write(SIZES["d1"] - 512, os.urandom(512))
            ran = twin.backup("--mode", mode).succeeded()
            assert ran.result["mode"] == mode
            assert ran.named("warning") == []
            twin.check_exact()
            twin.nothing_left()
    twin.only_newest_segment()
    twin.verify()
    assert twin.status == "running"
    assert twin.plugged() == ["d0", "d1"]


def test_an_audit_reads_what_was_not_reclaimed(
    twin: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other leaf is stored, and reclaimed at once, before the ones between are audited."""
    monkeypatch.setattr(reclaim, "BATCH", 1)
    twin.take(fleecing="filter")
    for leaf in range(0, 32, 2):
        twin.writer("d0").write(leaf * KIB64, b"x")
    way = fleece.Fleecing.FILTER
    with fleece.QemuSource(str(twin.qemu.qmp_socket), twin.scratch, None, way) as source:
        options = fleece.BackupOptions(guest="g", audit=1.0)
        result = fleece.backup(source, fleece.open_store(twin.store), options)
    assert result.disks[0].dirty_bytes == 16 * KIB64
    assert result.disks[0].audited_bytes == SIZES["d0"] - 16 * KIB64
    twin.check_exact()
    words = ("--guest", "g", "--scratch", twin.scratch, *FILTER, "--json")
    INTACT.run("audit", twin.source, twin.store, *words).succeeded()
    twin.nothing_left()


@pytest.mark.parametrize("unit", [UNIT, None])
def test_reads_do_not_cross_what_was_copied(
    full_disk: MachineScene, monkeypatch: pytest.MonkeyPatch, unit: int | None
) -> None:
    """Before 8.0, QEMU shows live data to a read that does, and calls zero what is zero now."""
    base = _live(full_disk, full_disk.folder / "base").read_bytes()
    affected = full_disk.qemu.version < (8, 0, 0)
    if unit is None:
        monkeypatch.setattr(filtered, "_WHOLE_READS", (0, 0, 0))

    def overwrite(event: Event) -> None:
        if event.name == "point":
            full_disk.writer().write(3 * KIB64, b"new" * 1000)
            full_disk.writer().zero(20 * KIB64, KIB64, unmap=False)
            full_disk.writer().zero(40 * KIB64, 20 * KIB64, unmap=True)

    full_disk.take(fleecing="filter", listener=overwrite)
    same = full_disk.restore().read_bytes() == base
    assert same == (unit is not None or not affected)


def test_exact_while_the_guest_writes(twin: MachineScene) -> None:
    """Each disk at each point is as it was after some of its writes, never a mixture."""
    base = {
        node: _live(twin, twin.folder / f"base-{node}", node).read_bytes() for node in ("d0", "d1")
    }
    guest = Guest(twin, seed=5)
    try:
        for _ in range(4):
            before = len(guest.writes)
            twin.slow_backup(milliseconds=30).wait().succeeded()
            assert len(guest.writes) > before + 10
    finally:
        guest.halt()
    twin.backup().succeeded()
    twin.check_exact()
    for node, data in base.items():
        _check_states(twin, node, data, [made for made in guest.writes if made.node == node])


def test_what_is_written_around_the_moment_is_not_lost(
    twin: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who does not stand still with the guest: in this point, the next, or both."""
    plain: Callable[..., None] = vars(filtered)["plug"]
    leaves = iter(range(90))

    def plug(*arguments: Any) -> None:
        for node in ("d0", "d1"):
            twin.writer(node).write(next(leaves) * 2 * KIB64 % (3 * MIB), os.urandom(3000))
        plain(*arguments)
        for node in ("d0", "d1"):
            twin.writer(node).write(next(leaves) * 2 * KIB64 % (3 * MIB), os.urandom(3000))

    monkeypatch.setattr(filtered, "plug", plug)
    for _ in range(3):
        twin.take(fleecing="filter")
    monkeypatch.undo()
    for fleecing in ("filter", "classic"):
        twin.take("incremental", fleecing=fleecing)
        twin.check_exact()


def _check_states(scene: Scene, node: str, base: bytes, writes: list[Write]) -> None:
    state, done = bytearray(base), 0
    for point in fleece.open_store(scene.store).catalogue().of_guest("g"):
        restored = scene.restore(node, point.id)
        held = restored.read_bytes()
        restored.unlink()
        while state != held:
            assert done < len(writes), f"{node} at point {point.sequence} is no state of it"
            made = writes[done]
            data = bytes(made.length) if made.data is None else made.data
            state[made.offset : made.offset + made.length] = data
            done += 1


def test_disks_of_one_moment_in_a_real_guest(files: GuestFiles, tmp_path: Path) -> None:
    disks = [
        Disk(images.make_disk(tmp_path / "d0.qcow2", 64 * MIB, fs="ext4"), "d0"),
        Disk(images.make_disk(tmp_path / "d1.raw", 64 * MIB, "raw", fs="ext4"), "d1", "raw"),
    ]
    with GuestMachine(files, disks, append="rig.nslots=64 rig.delay=1000") as guest:
        scene = MachineScene(guest, tmp_path)
        guest.wait_acked(20)
        agent = ("--guest-agent", guest.agent_socket, "--require-freeze")
        for words, scene.way in (((), FILTER), ((), CLASSIC), (agent, FILTER)):
            acked = guest.acked
            scene.backup(*words).succeeded()
            scene.nothing_left()
            guest.wait_acked(guest.acked + 20)
            restored = [scene.restore(node) for node in ("d0", "d1")]
            report = consistency.check(restored, acked=acked)
            assert report.problems == []
        told = [e["event"] for e in guest.control.events if e["event"] in ("STOP", "RESUME")]
        assert told == 2 * ["STOP", "RESUME"]
        scene.only_newest_segment()


# ---- the guest ---------------------------------------------------------------------------------


def _quiet(guest: GuestMachine) -> None:
    """The guest saw no error, and went on each time it was stopped."""
    told = [event["event"] for event in guest.control.events]
    assert "BLOCK_IO_ERROR" not in told
    assert told.count("STOP") == told.count("RESUME")


def test_a_full_scratch_costs_the_point_and_not_the_guest(
    files: GuestFiles, tmp_path: Path
) -> None:
    """A run that is blind to its budget: QEMU itself gives the snapshot up."""
    written = images.make_disk(tmp_path / "a.qcow2", 128 * MIB, fs="ext4")
    large = images.random_image(tmp_path / "b.qcow2", 96 * MIB, seed=3, fill=1.0)
    blind = Mutation(
        "it does not look at the scratch",
        (("source/qemu/point.py", "if room.left <= 0:", "if False:"),),
    )
    with (
        small_tmpfs(2) as scratch,
        GuestMachine(files, [Disk(written, "a"), Disk(large, "b")], append="rig.delay=0") as guest,
    ):
        guest.wait_acked(3)
        scene = MachineScene(guest, tmp_path)
        scene.way = FILTER
        scene.backup().succeeded()
        scene.scratch, roomy = scratch, scene.scratch
        scene.engine = blind.engine(tmp_path)
        full = ("--mode", "full")
        ran = scene.slow_backup(*full, milliseconds=1000).wait()
        ran.failed(4, "given up to spare the guest", "--scratch")
        nothing_left(guest, scratch)
        assert scene.plugged() == ["a", "b"]
        guest.wait_acked(guest.acked + 5)
        _quiet(guest)
        # A killed one: the guest goes on above a filter that has given up, until the next run.
        running = scene.slow_backup(*full, milliseconds=1000)
        running.wait_event("point")
        guest.wait_acked(guest.acked + 20)
        running.kill()
        guest.wait_acked(guest.acked + 20)
        scene.scratch, scene.engine = roomy, INTACT
        acked = guest.acked
        assert scene.backup().succeeded().result["mode"] == "incremental"
        _quiet(guest)
        assert scene.plugged() == ["a", "b"]
        nothing_left(guest, roomy)
        report = consistency.check([scene.restore("a")], acked=acked)
        assert report.problems == []


def test_a_snapshot_that_is_given_up_after_the_last_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is proven whole before anything is committed."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1, fill=1.0)
    plain: Callable[..., None] = vars(engine)["copy_all"]
    with small_tmpfs(2) as scratch, _machine(tmp_path, Disk(image, "d0")) as scene:
        scene.scratch = scratch

        def copy_all(*arguments: Any) -> None:
            plain(*arguments)
            scene.writer().write(0, os.urandom(4 * MIB))

        monkeypatch.setattr(engine, "copy_all", copy_all)
        monkeypatch.setattr(Scratch, "room", lambda self: Room(1 << 40, ""))
        with pytest.raises(fleece.PointError, match="given up to spare the guest"):
            scene.take(fleecing="filter")
        monkeypatch.undo()
        assert scene.points() == 0
        nothing_left(scene.qemu, scratch)
        scene.take()
        scene.check_exact()


@contextmanager
def _slow_writes(pid: int, file: Path, seconds: int) -> Iterator[None]:
    """Each write of a process to a file takes so long."""
    fault = f"inject=pwrite64,pwritev,pwritev2:delay_enter={seconds * 1_000_000}"
    words = ["-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-P", str(file), "-e", fault]
    tracer = subprocess.Popen(["strace", *words], stderr=subprocess.DEVNULL)
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: f"TracerPid:\t{tracer.pid}" in status.read_text(), "strace")
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def test_a_slow_scratch_keeps_no_write_waiting_for_long(
    full_disk: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk.take(fleecing="filter")
    monkeypatch.setattr(filtered, "COPY_LIMIT", 1)
    took: list[float] = []

    def overwrite(event: Event) -> None:
        if event.name == "point":
            (scratch,) = full_disk.scratch.glob("*/s0.raw")
            with _slow_writes(full_disk.qemu.pid, scratch, 60):
                for offset in range(20 * MIB, 32 * MIB, MIB):
                    start = time.monotonic()
                    full_disk.writer().write(offset, b"new")
                    took.append(time.monotonic() - start)

    with pytest.raises(fleece.PointError, match="or not within 1 s"):
        full_disk.take("full", fleecing="filter", listener=overwrite)
    assert 1 <= took[0] < 60
    assert min(took[1:]) < 1, "each write waited"
    full_disk.nothing_left()
    full_disk.take("incremental", fleecing="filter")
    full_disk.check_exact()


def test_a_point_that_was_given_up_says_so_ever_after(
    full_disk: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's read that failed a moment before is told as the loss, not as the read."""
    monkeypatch.setattr(filtered, "COPY_LIMIT", 1)
    socket = str(full_disk.qemu.qmp_socket)
    with fleece.QemuSource(socket, full_disk.scratch, None, fleece.Fleecing.FILTER) as source:
        (disk,) = source.inventory().disks
        with source.take(
            fleece.Request("01234567", 1, "0123456789", [fleece.Wanted(disk, None)])
        ) as point:
            (scratch,) = full_disk.scratch.glob("*/s0.raw")
            with _slow_writes(full_disk.qemu.pid, scratch, 60):
                full_disk.writer().write(30 * MIB, b"new")
            for tell in (point.watch, point.check, point.check):
                with pytest.raises(fleece.PointError, match="or not within 1 s"):
                    tell()
    full_disk.nothing_left()


def test_the_budget_is_kept(full_disk: MachineScene) -> None:
    running = full_disk.slow_backup("--scratch-limit", "4M", milliseconds=300)
    running.wait_event("point")
    for offset in range(0, 16 * MIB, KIB64):
        full_disk.writer().write(16 * MIB + offset, b"new")
    running.wait().failed(4, "of the 4194304 bytes that it may take")
    full_disk.nothing_left()
    assert full_disk.plugged() == ["d0"]
    full_disk.backup().succeeded()
    full_disk.check_exact()


@pytest.mark.parametrize("state", ["prelaunch", "paused"])
def test_a_guest_that_its_user_stopped_stays_so(tmp_path: Path, state: str) -> None:
    with _machine(tmp_path, *_two_disks(tmp_path), run=False) as scene:
        if state == "paused":
            for command in ("cont", "stop"):
                scene.qemu.control.command(command)
        scene.backup().succeeded()
        assert scene.status == state
        moment = Moment("plugged", "fleece.source.qemu.hold_by_filters", "plug", "after", 1)
        scene.killed_backup(moment)
        assert scene.plugged()[0].startswith("fleece-")
        scene.backup().succeeded()
        assert scene.status == state
        scene.nothing_left()
        scene.check_exact()
        told = [event["event"] for event in scene.qemu.control.events]
        assert told.count("RESUME") == (state == "paused")


def test_a_guest_that_an_interrupted_backup_left_stopped_is_continued(twin: MachineScene) -> None:
    twin.backup().succeeded()
    killed = Moment("stopped", "fleece.source.qemu.hold_by_filters", "plug", "before", 1)
    twin.killed_backup(killed)
    assert twin.status == "paused"
    ran = twin.clean().succeeded()
    assert "stop of the guest" in [event["kind"] for event in ran.named("removed")]
    assert twin.status == "running"
    twin.nothing_left()
    # The next backup does so as well, into whichever store, and even if it finds a freeze first.
    twin.killed_backup(killed)
    assert twin.status == "paused"
    ran = twin.backup(store=twin.folder / "other").succeeded()
    assert ran.named("leftover")[0]["kind"] == "stop of the guest"
    assert twin.status == "running"
    twin.clean().succeeded()
    twin.nothing_left()
    assert twin.backup().succeeded().result["mode"] == "incremental"
    twin.check_exact()


def test_the_monitor_is_lost_while_the_guest_is_stopped(twin: MachineScene) -> None:
    """It is let go over a new connection, at once."""
    twin.backup().succeeded()
    nursery = Nursery(twin.folder)
    try:
        for step in ("after stop 1", "before qom-set 2", "before cont 1"):
            ran = nursery.run(twin.words(), "monitor", step=step)
            ran.failed(3, "the connection to QEMU was lost")
            assert twin.status == "running"
            assert nursery.run(twin.words()).succeeded().result["mode"] == "incremental"
            twin.nothing_left()
    finally:
        nursery.close()
    twin.check_exact()


def test_somebody_lets_the_guest_go_on_in_that_moment(
    twin: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its disks are not of one moment; a new point is taken."""
    plain: Callable[..., None] = vars(filtered)["plug"]
    calls: list[str] = []

    def plug(*arguments: Any) -> None:
        plain(*arguments)
        calls.append(arguments[-1])
        if len(calls) in (1, 4):
            twin.qemu.control.command("cont")

    monkeypatch.setattr(filtered, "plug", plug)
    twin.take(fleecing="filter")
    assert len(calls) == 6
    twin.check_exact()
    twin.nothing_left()
    assert twin.status == "running"


# ---- killed ------------------------------------------------------------------------------------


def _outer(steps: list[str]) -> list[str]:
    """Of the steps that differ by their number alone, the first and the last."""
    groups: dict[str, list[str]] = {}
    for step in steps:
        groups.setdefault(step.rpartition(" ")[0], []).append(step)
    return [step for group in groups.values() for step in dict.fromkeys((group[0], group[-1]))]


def test_killed_at_the_steps_that_a_filter_adds(twin: MachineScene) -> None:
    twin.backup().succeeded()
    nursery = Nursery(twin.folder)
    mine = ("blockdev-", "transaction", "stop", "cont", "qom-set", "block-export")
    try:
        listed = control_steps(nursery.steps(twin.words()))
        steps = _outer([name for name in listed if name.split()[1].startswith(mine)])
        assert len(steps) >= 14
        for number, step in enumerate(steps):
            twin.writer("d0").write(number * KIB64, os.urandom(700))
            ran = nursery.run(twin.words(), "SIGKILL", step=step)
            assert ran.code == -signal.SIGKILL, f"{step}: {ran}"
            twin.writer("d1").write(number * KIB64, os.urandom(700))
            ran = nursery.run(twin.words()).succeeded()
            assert ran.result["mode"] == "incremental", step
            assert not ran.result["resumed"]
            assert twin.status == "running", step
            assert twin.plugged() == ["d0", "d1"]
            twin.nothing_left()
            twin.only_newest_segment()
            twin.check_exact()
    finally:
        nursery.close()


def test_the_disks_are_written_out_before_the_guest_is_stopped(twin: MachineScene) -> None:
    """QEMU flushes them in a stop, which lasts as long. One that cannot be opened is left to it."""
    trace, images_of = twin.folder / "trace", {disk.path for disk in twin.qemu.disks.values()}
    (hidden,) = (path for path in images_of if path.suffix == ".raw")
    for gone in (False, True):
        if gone:
            hidden.rename(twin.folder / "hidden")
        calls = ["-e", "trace=fdatasync,openat,?open"]
        strace = ["strace", "-f", "-y", "-s", "300", "-o", str(trace), *calls]
        words = [sys.executable, "-m", "fleece", *map(str, twin.words())]
        subprocess.run([*strace, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = trace.read_text().splitlines()
        (noted,) = (n for n, line in enumerate(lines) if "O_CREAT" in line and "stopped" in line)
        found = re.findall(r"fdatasync\(\d+<(.*?)>", "\n".join(lines[:noted]))
        synced = images_of & {Path(path) for path in found}
        assert synced == (images_of - {hidden} if gone else images_of)
    (twin.folder / "hidden").rename(hidden)
    twin.check_exact()


def test_a_guest_that_its_user_stops_while_the_disks_are_written_out_stays_so(
    twin: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(monitor: Monitor) -> None:
        twin.qemu.control.command("stop")

    monkeypatch.setattr(still, "_write_out", stopped)
    twin.take(fleecing="filter")
    assert twin.status == "paused"
    twin.nothing_left()
    twin.check_exact()


@pytest.mark.parametrize("fleecing", ["classic", "filter"])
def test_qemu_never_flushes_a_scratch(twin: MachineScene, fleecing: str) -> None:
    """It would in the guest's way: when a scratch grows, and all of it when it is closed."""
    seen: list[dict[str, Any]] = []

    def look(event: Event) -> None:
        if event.name == "point":
            seen.extend(twin.qemu.control.command("query-named-block-nodes"))

    twin.take(fleecing=fleecing, listener=look)
    scratch = str(twin.scratch)
    nodes = [node for node in seen if node["file"].startswith(scratch)]
    assert len([node for node in nodes if node["drv"] == "file"]) == 2
    assert all(node["cache"]["no-flush"] for node in nodes)
    others = [node for node in seen if node["node-name"] in ("d0", "d1")]
    assert [node["cache"]["no-flush"] for node in others] == [False, False]


def test_a_stop_that_cannot_be_noted_is_none(twin: MachineScene) -> None:
    """Else nobody would let the guest go on, should the run be killed then."""
    with (
        Monitor(str(twin.qemu.qmp_socket)) as monitor,
        held_folder(
            twin.scratch, PointNames("0" * 8, "1" * 10).prefix, monitor.peer.owner, "1"
        ) as work,
        pytest.raises(fleece.SourceError, match="note that the guest is stopped"),
        standing_still(monitor, Note(work, "no/name")),
    ):
        pytest.fail("it was taken for noted")
    assert twin.status == "running"


def test_the_point_of_an_interrupted_backup_is_not_resumed(full_disk: MachineScene) -> None:
    running = full_disk.slow_backup(milliseconds=100)
    running.wait_event("progress")
    running.kill()
    ran = full_disk.backup().succeeded()
    assert "a backup with filters always takes" in ran.named("warning")[0]["what"]
    assert ran.result["resumed"] is False
    full_disk.check_exact()
    full_disk.nothing_left()


def test_an_interrupted_point_that_jobs_hold_is_not_what_was_asked_for(
    full_disk: MachineScene,
) -> None:
    running = full_disk.slow_backup("--fleecing", "classic", milliseconds=100)
    running.wait_event("progress")
    running.kill()
    ran = full_disk.backup().succeeded()
    assert "a backup with filters always takes" in ran.named("warning")[0]["what"]
    assert ran.result["resumed"] is False
    full_disk.check_exact()
    full_disk.nothing_left()


# ---- the scratch shrinks -------------------------------------------------------------------------


def _use(scene: Scene) -> int:
    return sum(file.stat().st_blocks * 512 for file in scene.scratch.rglob("s0.*"))


def test_the_scratch_shrinks_as_data_becomes_durable(
    full_disk: MachineScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest overwrites all before anything is read. No trim comes before durability."""
    monkeypatch.setattr(reclaim, "BATCH", 4 * MIB)
    durable: list[Extents] = []
    uses: list[int] = []
    sync, trim = DeltaFile.sync, Connection.trim

    def noted_sync(self: DeltaFile) -> None:
        self._file.flush()
        held = self.path.read_bytes()  # before: what is appended meanwhile may not be durable
        sync(self)
        copy = full_disk.folder / f"copy-{threading.get_ident()}"
        copy.write_bytes(held)
        with fleece.open_store(full_disk.store).access.partial(named_file(copy)) as partial:
            durable.append(partial.proven().extents())

    def noted_trim(self: Connection, offset: int, length: int) -> None:
        proven = Extents.joined(durable)
        assert len(Extents.of([(offset, offset + length)]).subtract(proven)) == 0
        uses.append(_use(full_disk))
        trim(self, offset, length)

    def overwrite(event: Event) -> None:
        if event.name == "point":
            for offset in range(0, 32 * MIB, MIB):
                full_disk.writer().write(offset, b"new!" * (MIB // 4))
            uses.append(_use(full_disk))

    monkeypatch.setattr(DeltaFile, "sync", noted_sync)
    monkeypatch.setattr(Connection, "trim", noted_trim)
    full_disk.take(fleecing="filter", listener=overwrite)
    assert uses[0] >= 30 * MIB
    assert uses[-1] <= 10 * MIB
    assert sorted(uses, reverse=True) == uses
    full_disk.take("incremental", fleecing="filter")
    full_disk.check_exact()
    full_disk.nothing_left()


def test_what_no_read_needs_is_never_copied(full_disk: MachineScene) -> None:
    """What the guest overwrites outside of the dirty set takes no scratch."""
    full_disk.take(fleecing="filter")
    full_disk.writer().write(MIB, os.urandom(2 * MIB))
    uses: list[int] = []

    def overwrite(event: Event) -> None:
        if event.name == "progress" and not uses:
            for offset in range(8 * MIB, 32 * MIB, MIB):
                full_disk.writer().write(offset, b"new!" * (MIB // 4))
            uses.append(_use(full_disk))

    result = full_disk.take("incremental", fleecing="filter", listener=overwrite)
    assert result.disks[0].dirty_bytes == 2 * MIB
    assert uses[0] <= MIB
    assert full_disk.take("incremental").disks[0].dirty_bytes == 24 * MIB
    full_disk.check_exact()


def test_only_whole_units_are_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU aborts at any other; the first unit stays, because it tells whether all is whole."""
    trimmed: list[tuple[int, int]] = []
    taken = mock.Mock(monitor=mock.Mock(version=(7, 2, 22)))
    monkeypatch.setattr(filtered, "_trim", lambda uri, pieces, cancel: trimmed.extend(pieces))
    way = FilterFleecing(taken)
    size = 10 * UNIT + 512
    way.served([Export("d", "nbd+unix:///d", size, None, None)])
    for odd in ((0, size), (1, 3 * UNIT), (UNIT - 1, 2 * UNIT), (9 * UNIT, size), (5, 6)):
        way.reclaim(0, Extents.of([odd]))
    assert trimmed == [(UNIT, 9 * UNIT), (UNIT, 2 * UNIT), (UNIT, UNIT), (9 * UNIT, UNIT)]


def test_the_gaps_that_are_given_back_are_bounded() -> None:
    size = 100_000 * MIB
    dirty = Extents.of([(n * 4 * MIB, n * 4 * MIB + KIB64) for n in range(20_000)])
    clean = reclaim.never_read(dirty, size)
    assert len(clean) == reclaim.MOST_GAPS
    assert (int(clean.start[-1]), int(clean.end[-1])) == (79_996 * MIB + KIB64, size)
    assert len(clean.intersect(dirty)) == 0
    assert reclaim.never_read(Extents.of([(MIB, 2 * MIB)]), 3 * MIB).total == 2 * MIB
    assert len(reclaim.never_read(Extents.whole(size), size)) == 0


# ---- where it cannot be --------------------------------------------------------------------------


def test_a_daemon_has_no_device_to_put_a_filter_below(scene: Scene) -> None:
    ran = scene.backup(*FILTER).failed(4, "no device of a machine has it", "--fleecing classic")
    assert ran.named("point") == []
    scene.nothing_left()
    assert scene.segments() == []
    abilities = _abilities(scene)
    assert abilities["copy-before-write"]
    assert not abilities["fleecing-filter"]


def _abilities(scene: Scene) -> dict[str, bool]:
    ran = scene.engine.run("doctor", scene.source, "--json").succeeded()
    return {event["name"]: event["present"] for event in ran.named("ability")}


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('item.text("name") for item in members', '"" for item in members', "spare"),
        ('("copy-before-write", "snapshot-access")', '("cbw", "snapshot-access")', "driver cbw"),
        ('== "alternate"', '== "builtin"', "another node's dirty bitmap"),
    ],
)
def test_an_older_qemu_is_refused(twin: MachineScene, old: str, new: str, word: str) -> None:
    """Its schema lacks something."""
    assert _abilities(twin)["fleecing-filter"]
    fault = Mutation(f"lacks {word[:5].strip()}", (("source/qemu/schema.py", old, new),))
    twin.engine = fault.engine(twin.folder)
    twin.backup().failed(4, word, "--fleecing classic")
    twin.nothing_left()
    assert not _abilities(twin)["fleecing-filter"]


def test_disks_with_iothreads_are_refused_as_ever(tmp_path: Path) -> None:
    with Machine(_two_disks(tmp_path), iothreads=True) as qemu:
        scene = MachineScene(qemu, tmp_path)
        scene.way = FILTER
        if qemu.version >= (8, 2, 3):
            pytest.skip("this QEMU is not affected")
        scene.backup("--transport", "pull").failed(4, "iothread")
        scene.nothing_left()


# ---- two masters ---------------------------------------------------------------------------------


def _held(scene: MachineScene, way: tuple[str, ...], number: int) -> Running:
    """A backup into a store of its own over a monitor of its own, held when its point is taken."""
    scratch = scene.scratch.with_name(f"scratch{number}")
    scratch.mkdir(exist_ok=True)
    socket = f"qmp:{scene.qemu.qmp_sockets[number]}"
    store = scene.place(scene.folder / f"store{number}")
    words = ("backup", socket, store, "--guest", "g", "--scratch", scratch, "--json", *way)
    running = scene.slow("fleece.nbd.connection", "Connection.read", 50, *words)
    running.wait_event("point")
    running.signal(signal.SIGSTOP)
    return running


@pytest.mark.parametrize("first_out", [0, 1])
def test_a_job_may_begin_below_a_filter(full_disk: MachineScene, first_out: int) -> None:
    scene, running, states = full_disk, [], []
    for number, way in enumerate((FILTER, CLASSIC)):
        scene.writer().write(MIB * number, os.urandom(1000))
        states.append(_live(scene, scene.folder / f"at{number}"))
        running.append(_held(scene, way, number))
    scene.writer().write(4 * MIB, os.urandom(3 * MIB))
    for number in (first_out, 1 - first_out):
        running[number].signal(signal.SIGCONT)
        running[number].wait().succeeded()
        scene.writer().write(0, os.urandom(3 * MIB))
    for number in range(2):
        restored = scene.restore(store=scene.folder / f"store{number}")
        assert restored.read_bytes() == states[number].read_bytes()
    assert scene.plugged() == ["d0"]
    scene.nothing_left()


@pytest.mark.parametrize("way", [FILTER, CLASSIC], ids=["filter", "classic"])
def test_no_filter_is_put_above_what_will_go(full_disk: MachineScene, way: tuple[str, ...]) -> None:
    """QEMU 7.2 aborts when a job's filter goes from below a filter that was made above it."""
    first = _held(full_disk, way, 0)
    words = ("--guest", "g", "--scratch", full_disk.scratch, "--json", *FILTER)
    second = f"qmp:{full_disk.qemu.qmp_sockets[1]}"
    store = full_disk.place(full_disk.folder / "other")
    ran = INTACT.run("backup", second, store, *words).failed(4, "another backup or job is at work")
    assert ran.named("point") == []
    first.signal(signal.SIGCONT)
    first.wait().succeeded()
    full_disk.nothing_left()
    INTACT.run("backup", second, store, *words).succeeded()
    full_disk.check_exact(store=store)
