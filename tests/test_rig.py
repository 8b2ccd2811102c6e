"""The rig itself: its processes do what they say, and its judges can say no."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig import consistency, images
from tests.rig.daemon import StorageDaemon, fuse_usable
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles, guest_files
from tests.rig.machine import GuestMachine, Machine, boot_check
from tests.rig.process import RigError, run_checked
from tests.rig.qemu import QemuProcess
from tests.rig.qmp import Monitor
from tests.rig.records import SLOT_SIZE, parse_record

MIB = images.MIB
KIB64 = 65536

needs_fuse = pytest.mark.skipif(not fuse_usable(), reason="no /dev/fuse here")
qemu_kinds = pytest.mark.parametrize(
    "qemu", [pytest.param(StorageDaemon, marks=needs_fuse), Machine]
)

StartQemu = Callable[[list[Disk]], QemuProcess]


# ---- disks without a guest -------------------------------------------------------------------


@qemu_kinds
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_writes_land_in_the_image(qemu: StartQemu, fmt: str, tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "disk", 4 * MIB, seed=1, fmt=fmt, fill=1.0)
    expected = bytearray(images.to_raw(image, tmp_path / "before", fmt).read_bytes())
    data = os.urandom(2 * MIB + 1000)
    with qemu([Disk(image, "drive0", fmt)]) as process:
        writer = process.writer("drive0")
        writer.write(512, data)
        writer.zero(3 * MIB, KIB64, unmap=False)
        writer.zero(3 * MIB + KIB64, KIB64, unmap=True)
        writer.discard(3 * MIB + 4 * KIB64, 2 * KIB64)
        writer.flush()
    expected[512 : 512 + len(data)] = data
    expected[3 * MIB : 3 * MIB + 2 * KIB64] = bytes(2 * KIB64)
    expected[3 * MIB + 4 * KIB64 : 3 * MIB + 6 * KIB64] = bytes(2 * KIB64)
    (tmp_path / "expected").write_bytes(expected)
    images.compare(image, tmp_path / "expected", fmt, "raw")
    if fmt == "qcow2":
        images.check(image)


@qemu_kinds
def test_writes_are_seen_by_dirty_bitmaps(qemu: StartQemu, tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "disk", 4 * MIB)
    with qemu([Disk(image, "drive0")]) as process, Monitor(process.qmp_socket) as monitor:
        writer = process.writer("drive0")
        writer.write(0, b"before")
        bitmap = {"node": "drive0", "name": "b0", "persistent": True, "granularity": KIB64}
        monitor.command("block-dirty-bitmap-add", bitmap)
        writer.write(KIB64, b"x")
        writer.zero(2 * KIB64, KIB64, unmap=True)
        writer.discard(4 * KIB64, KIB64)
        assert _dirty_bytes(monitor) == 3 * KIB64
        process.restart()
        with Monitor(process.qmp_socket) as again:
            assert _dirty_bytes(again) == 3 * KIB64


def _dirty_bytes(monitor: Monitor) -> int:
    (node,) = (n for n in monitor.command("query-named-block-nodes") if n["node-name"] == "drive0")
    (bitmap,) = node["dirty-bitmaps"]
    return int(bitmap["count"])


@qemu_kinds
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_a_fleecing_export_keeps_its_point(qemu: StartQemu, fmt: str, tmp_path: Path) -> None:
    """The rig leaves the NBD server free, and its writes go through copy-before-write."""
    image = images.random_image(tmp_path / "disk", 4 * MIB, seed=1, fmt=fmt, fill=1.0)
    expected = images.to_raw(image, tmp_path / "expected", fmt)
    scratch = images.make_disk(tmp_path / "scratch", 4 * MIB)
    with qemu([Disk(image, "drive0", fmt)]) as process, Monitor(process.qmp_socket) as monitor:
        _export_point(monitor, scratch, process.folder / "nbd.sock")
        writer = process.writer("drive0")
        writer.write(1000, os.urandom(5 * KIB64))
        writer.zero(MIB, KIB64, unmap=True)
        writer.discard(2 * MIB, KIB64)
        uri = f"nbd+unix:///point?socket={process.folder}/nbd.sock"
        run_checked("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "point")
        _end_export(monitor)
    images.compare(tmp_path / "point", expected, "raw", "raw")
    with pytest.raises(AssertionError, match="mismatch"):
        images.compare(image, expected, fmt, "raw")


def _export_point(monitor: Monitor, scratch: Path, socket: Path) -> None:
    """Export the present state of drive0 as "point", by an overlay and a backup job."""
    file = {"driver": "file", "filename": str(scratch)}
    overlay = {"driver": "qcow2", "node-name": "fl0", "backing": "drive0", "file": file}
    monitor.command("blockdev-add", overlay)
    job = {"job-id": "job0", "device": "drive0", "target": "fl0", "sync": "none"}
    monitor.command("blockdev-backup", {**job, "auto-dismiss": False})
    address = {"type": "unix", "data": {"path": str(socket)}}
    monitor.command("nbd-server-start", {"addr": address})
    export = {"id": "ex0", "type": "nbd", "node-name": "fl0", "name": "point"}
    monitor.command("block-export-add", export)


def _end_export(monitor: Monitor) -> None:
    monitor.command("block-export-del", {"id": "ex0", "mode": "hard"})
    monitor.wait_event("BLOCK_EXPORT_DELETED", 5.0, id="ex0")
    monitor.command("block-job-cancel", {"device": "job0"})
    monitor.wait_event("JOB_STATUS_CHANGE", 5.0, id="job0", status="concluded")
    monitor.command("job-dismiss", {"id": "job0"})


@qemu_kinds
def test_killed_process_fails_its_writers_and_starts_again(qemu: StartQemu, tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "disk", MIB, "raw")
    with qemu([Disk(image, "drive0", "raw")]) as process:
        writer, pid, socket = process.writer("drive0"), process.pid, process.qmp_socket
        writer.write(0, b"first")
        process.kill()
        assert not process.alive
        with pytest.raises(OSError, match=r".+"):
            writer.write(0, b"lost")
        process.start()
        assert process.pid != pid
        assert process.qmp_socket == socket
        process.writer("drive0").write(5, b"second")
    assert image.read_bytes()[:11] == b"firstsecond"


@qemu_kinds
def test_a_failed_write_is_told(qemu: StartQemu, tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "disk", MIB)
    with qemu([Disk(image, "drive0")]) as process, pytest.raises(OSError, match=r".+"):
        process.writer("drive0").write(2 * MIB, b"beyond the end")


@qemu_kinds
def test_nothing_is_left(qemu: StartQemu, tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "disk", MIB)
    mounts = Path("/proc/self/mounts").read_text()
    with qemu([Disk(image, "drive0")]) as process:
        pid, folder = process.pid, process.folder
    with pytest.raises(ZeroDivisionError), qemu([Disk(image, "drive0")]) as other:
        raise ZeroDivisionError
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
    assert not other.folder.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["disk"]
    assert Path("/proc/self/mounts").read_text() == mounts


def test_a_bad_image_is_explained(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"no qcow2" * 100)
    with (
        pytest.raises(RigError, match="not in qcow2 format"),
        Machine([Disk(tmp_path / "disk", "drive0")]),
    ):
        pass


def test_compare_sees_content_and_size(tmp_path: Path) -> None:
    a = images.random_image(tmp_path / "a", MIB, seed=1)
    images.compare(a, images.random_image(tmp_path / "same", MIB, seed=1, fmt="raw"))
    for other in (
        images.random_image(tmp_path / "other", MIB, seed=2),
        images.random_image(tmp_path / "longer", 2 * MIB, seed=1),
    ):
        with pytest.raises(AssertionError):
            images.compare(a, other)
    empty = images.make_disk(tmp_path / "empty", MIB)
    with pytest.raises(AssertionError, match="sizes differ"):
        images.compare(empty, images.make_disk(tmp_path / "empty2", 2 * MIB))


# ---- a guest ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuestRun:
    """What one run of a two-disk guest left: copies of its disks at three points in time.

    Attributes:
        early: made while the machine was stopped.
        frozen: made later, while the file systems were frozen and the machine was stopped.
        final: the disks themselves, after quit.
        acked: of early, frozen and final, what was durable for sure.
    """

    early: list[Path]
    frozen: list[Path]
    final: list[Path]
    acked: tuple[int, int, int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> GuestFiles:
    return guest_files(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def guest_run(files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestRun]:
    folder = tmp_path_factory.mktemp("run")
    final = [images.make_disk(folder / name, 64 * MIB, "raw", fs="ext4") for name in ("a", "b")]
    disks = [Disk(final[0], "drive0", "raw"), Disk(final[1], "drive1", "raw")]
    with GuestMachine(files, disks, append="rig.nslots=64 rig.delay=2000") as machine:
        machine.wait_ready()
        machine.wait_acked(70)
        early_acked = machine.acked
        early = _stopped_copies(machine, final, folder / "early")
        machine.wait_acked(machine.acked + 70)
        with machine.agent() as agent:
            assert agent.sh("cat /proc/mounts | grep -c ext4").out.strip() == "2"
            assert agent.command("guest-fsfreeze-freeze") == 2
            frozen_acked = machine.acked
            frozen = _stopped_copies(machine, final, folder / "frozen")
            assert agent.command("guest-fsfreeze-thaw") == 2
        machine.wait_acked(machine.acked + 5)
        final_acked = machine.acked
    yield GuestRun(early, frozen, final, (early_acked, frozen_acked, final_acked))
    shutil.rmtree(folder)


def _stopped_copies(machine: GuestMachine, disks: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    machine.control.command("stop")
    for disk in disks:
        # Not by qemu-img, which respects the lock of the running machine.
        run_checked("cp", "--sparse=always", disk, folder)
    machine.control.command("cont")
    return [folder / disk.name for disk in disks]


def test_points_in_time_pass(guest_run: GuestRun) -> None:
    early = consistency.check(guest_run.early, acked=guest_run.acked[0])
    frozen = consistency.check(guest_run.frozen, frozen=True, acked=guest_run.acked[1])
    final = consistency.check(guest_run.final, acked=guest_run.acked[2])
    assert early.problems == frozen.problems == final.problems == []
    assert min(early.images[1].last.values()) >= 70
    assert early.images[0].needs_recovery
    assert not frozen.images[0].needs_recovery


def test_unclean_disks_do_not_pass_as_frozen(guest_run: GuestRun) -> None:
    report = consistency.check(guest_run.early, frozen=True)
    assert any("frozen" in problem for problem in report.problems)


def test_lost_records_are_found(guest_run: GuestRun) -> None:
    report = consistency.check(guest_run.early, acked=guest_run.acked[2])
    assert any("were durable" in problem for problem in report.problems)


def test_disks_of_two_points_are_found(guest_run: GuestRun) -> None:
    ahead = consistency.check([guest_run.early[0], guest_run.frozen[1]])
    behind = consistency.check([guest_run.frozen[0], guest_run.early[1]])
    assert any("ahead of" in problem for problem in ahead.problems)
    assert any(" only " in problem for problem in behind.problems)


def test_exchanged_disks_are_found(guest_run: GuestRun) -> None:
    assert not consistency.check(guest_run.frozen[::-1]).ok


def test_disks_without_records_are_found(tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "empty", 16 * MIB, "raw", fs="ext4")
    assert consistency.check([image]).problems == [
        f"empty: no records of kind {kind}" for kind in consistency.KINDS
    ]


def test_one_stale_slot_is_found(guest_run: GuestRun, tmp_path: Path) -> None:
    torn, offset = _torn_slot(guest_run, tmp_path)
    with torn.open("r+b") as target, guest_run.early[0].open("rb") as source:
        source.seek(offset)
        target.seek(offset)
        target.write(source.read(SLOT_SIZE))
    report = consistency.check([torn, guest_run.frozen[1]], frozen=True)
    assert report.problems
    assert all("slot" in problem and "not" in problem for problem in report.problems)


def test_one_flipped_bit_is_found(guest_run: GuestRun, tmp_path: Path) -> None:
    torn, offset = _torn_slot(guest_run, tmp_path)
    with torn.open("r+b") as target:
        target.seek(offset + 2000)
        byte = target.read(1)[0]
        target.seek(offset + 2000)
        target.write(bytes([byte ^ 1]))
    report = consistency.check([torn, guest_run.frozen[1]], frozen=True)
    assert any("is torn" in problem for problem in report.problems)


def test_half_old_half_new_copy_is_found(guest_run: GuestRun, tmp_path: Path) -> None:
    """What copying a live disk gives: fsck may be content, the records never are."""
    torn = tmp_path / "a"
    old, new = guest_run.early[0].read_bytes(), guest_run.frozen[0].read_bytes()
    _, offset = _torn_slot(guest_run, tmp_path, oldest=False)
    torn.write_bytes(new[:offset] + old[offset:])
    assert not consistency.check([torn, guest_run.frozen[1]]).ok


def _torn_slot(guest_run: GuestRun, folder: Path, oldest: bool = True) -> tuple[Path, int]:
    """A copy of the frozen first disk, and where a slot is that differs from the early one.

    Args:
        guest_run: the images.
        folder: for the copy.
        oldest: of these slots the one with the oldest record, so that it is not the newest of
            all, which would be missed by its number alone; else the first on the disk.
    """
    torn = folder / "a"
    shutil.copy(guest_run.frozen[0], torn)
    old, new = guest_run.early[0].read_bytes(), torn.read_bytes()
    found = []
    for offset in range(0, len(new), SLOT_SIZE):
        before, after = (data[offset : offset + SLOT_SIZE] for data in (old, new))
        if before != after:
            old_record, record = parse_record(before), parse_record(after)
            # A slot stays in its place; the churn's files hold other records of this size.
            if old_record and record and record.slot == old_record.slot >= 8:
                found.append((record.seq, offset))
    assert found, "no slot was overwritten between the points"
    return torn, min(found)[1] if oldest else found[0][1]


def test_images_boot_and_stay_as_they_are(
    files: GuestFiles, guest_run: GuestRun, tmp_path: Path
) -> None:
    before = guest_run.final[0].read_bytes()
    disks = [Disk(path, f"d{i}", "raw") for i, path in enumerate(guest_run.final)]
    empty = Disk(images.make_disk(tmp_path / "empty", MIB), "d2")
    with pytest.raises(AssertionError, match="empty did not mount"):
        boot_check(files, [*disks, empty])
    assert guest_run.final[0].read_bytes() == before


def test_guest_goes_on_after_sigkill(files: GuestFiles, tmp_path: Path) -> None:
    """The writer goes on where it was; with iothreads and a second free monitor, on qcow2."""
    image = images.make_disk(tmp_path / "disk", 64 * MIB, fs="ext4")
    with GuestMachine(files, [Disk(image, "drive0")], iothreads=True, monitors=2) as machine:
        machine.wait_acked(3)
        machine.kill()
        acked = machine.acked
        machine.start()
        machine.wait_acked(acked + 3)
        for socket in machine.qmp_sockets:
            with Monitor(socket) as monitor:
                assert monitor.command("query-status")["running"]
        backend = {"path": machine.disks["drive0"].backend, "property": "iothread"}
        assert machine.control.command("qom-get", backend) == "/objects/io-drive0"
        machine.writer("drive0").flush()
    raw = images.to_raw(image, tmp_path / "raw")
    assert consistency.check([raw], acked=acked + 3).problems == []


def test_waits_have_a_limit(tmp_path: Path) -> None:
    image = images.make_disk(tmp_path / "disk", MIB)
    with Machine([Disk(image, "drive0")]) as machine:
        with pytest.raises(TimeoutError):
            machine.control.wait_event("BLOCK_JOB_COMPLETED", 0.1)
        with pytest.raises(TimeoutError):
            Monitor(machine.folder / "control.sock", timeout=0.2)


@qemu_kinds
def test_a_qemu_that_does_not_answer_is_described(qemu: StartQemu, tmp_path: Path) -> None:
    with qemu([Disk(images.make_disk(tmp_path / "disk", MIB), "d0")]) as process:
        stopped = rf"query-version has no answer after 0.2 s.*\n{process.pid} .* T "
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match=stopped):
                process.control.command("query-version", timeout=0.2)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert process.control.command("query-version")["qemu"]
