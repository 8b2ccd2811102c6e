"""The guest comes first: a scratch that runs full costs the backup, never the guest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.plan import PlannedDisk
from fleece.source.scratch import estimate
from fleece.source.segments import Bitmap
from tests.engine.scene import INTACT, Mutation, Scene, daemon, nothing_left, small_tmpfs
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine

MIB = images.MIB
FAST = "rig.delay=0"


# ---- a real guest ----------------------------------------------------------------------------


def _disks(folder: Path) -> list[Disk]:
    """A disk that the guest writes, and one that takes the backup a while to read."""
    written = images.make_disk(folder / "a.qcow2", 128 * MIB, fs="ext4")
    large = images.random_image(folder / "b.qcow2", 96 * MIB, seed=3, fill=1.0)
    return [Disk(written, "a"), Disk(large, "b")]


def _saw_nothing(guest: GuestMachine) -> None:
    """QEMU neither failed a write of the guest's nor stopped it."""
    guest.control.command("query-status")
    bad = [e for e in guest.control.events if e["event"] in ("BLOCK_IO_ERROR", "STOP")]
    assert bad == []


def test_the_backup_gives_up_before_the_scratch_is_full(files: GuestFiles, tmp_path: Path) -> None:
    with small_tmpfs(2) as scratch, GuestMachine(files, _disks(tmp_path), append=FAST) as guest:
        guest.wait_acked(3)
        scene = Scene(guest, tmp_path)
        scene.scratch = scratch
        ran = scene.slow_backup(milliseconds=5000).wait()
        ran.failed(4, "given up before the guest", "--scratch")
        guest.wait_acked(guest.acked + 5)
        nothing_left(guest, scratch)
        _saw_nothing(guest)
        assert "may have to be given up" in ran.named("warning")[0]["what"]

        # The same with a limit on a file system with room enough.
        scene.scratch = guest.folder / "scratch"
        ran = scene.slow_backup("--scratch-limit", "2M", milliseconds=5000).wait()
        ran.failed(4, "of the 2097152 bytes that it may take", "--scratch-limit")
        guest.wait_acked(guest.acked + 5)
        nothing_left(guest, scene.scratch)
        _saw_nothing(guest)
        assert fleece.open_store(scene.store).catalogue().points == ()


def test_a_guest_that_an_interrupted_backup_left_stopped_is_continued(
    files: GuestFiles, tmp_path: Path
) -> None:
    with small_tmpfs(2) as scratch, GuestMachine(files, _disks(tmp_path), append=FAST) as guest:
        guest.wait_acked(3)
        scene = Scene(guest, tmp_path)
        scene.scratch = scratch
        running = scene.slow_backup(milliseconds=1000)
        running.wait_event("point")
        running.kill()
        guest.control.wait_event("BLOCK_IO_ERROR")
        acked = guest.acked
        ran = INTACT.run("clean", scene.source, "--scratch", scratch, "--json").succeeded()
        assert "stop of the guest" in [event["kind"] for event in ran.named("removed")]
        nothing_left(guest, scratch)
        guest.wait_acked(acked + 5)

        # And a living run that is too late: what it watches by is taken from it.
        blind = Mutation(
            "it does not look at the scratch",
            (("source/qemu/point.py", "if room.left <= 0:", "if False:"),),
        )
        scene.engine = blind.engine(tmp_path)
        scene.slow_backup(milliseconds=5000).wait().failed(4, "was stopped by an I/O error")
        nothing_left(guest, scratch)
        guest.wait_acked(guest.acked + 5)


# ---- a storage daemon, whose guest sees each error and each delay ----------------------------


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Scene]:
    """64 MiB of data, so that each write of the guest's goes to the scratch first."""
    image = images.random_image(tmp_path / "d0.qcow2", 64 * MIB, seed=1, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        yield scene


def _write_all(scene: Scene, pause: float = 0.001) -> None:
    """The guest overwrites its disk, with so many seconds between two writes."""
    for offset in range(0, 64 * MIB, 65536):
        scene.writer().write(offset, b"new")
        time.sleep(pause)


def _scratch_use(scene: Scene) -> int:
    return sum(file.stat().st_blocks * 512 for file in scene.scratch.rglob("*.qcow2"))


def test_the_limit_is_not_exceeded(filled: Scene) -> None:
    running = filled.slow_backup("--scratch-limit", "40M", milliseconds=300)
    running.wait_event("point")
    most, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.002):
            try:
                most[0] = max(most[0], _scratch_use(filled))
            except FileNotFoundError:
                continue

    thread = threading.Thread(target=look)
    thread.start()
    _write_all(filled, pause=0.005)  # so slow that a busy host sees it in time
    ran = running.wait().failed(4, "of the 41943040 bytes that it may take", "--scratch-limit")
    stop.set()
    thread.join()
    assert 20 * MIB <= most[0] <= 40 * MIB
    assert ran.named("committed") == []
    filled.nothing_left()
    filled.take()
    filled.check_exact()


def test_a_limit_that_is_kept_changes_nothing(filled: Scene) -> None:
    filled.backup("--scratch-limit", "1G").succeeded()
    filled.backup("--scratch-limit", "100k").failed(2, "--scratch-limit")
    filled.check_exact()


def test_no_room_at_all_is_said_before_anything_is_done(filled: Scene) -> None:
    ran = filled.backup("--scratch-limit", "0").failed(4, "no backup can begin", "--scratch-limit")
    assert ran.named("point") == []
    assert filled.segments() == []
    filled.nothing_left()


def test_too_little_room_is_told_at_the_start(filled: Scene) -> None:
    ran = filled.backup("--scratch-limit", "6M").succeeded()
    assert "may overwrite 4194304 meanwhile" in ran.named("warning")[0]["what"]
    for offset in range(10):
        filled.writer().write(offset * MIB, b"x")
    ran = filled.backup("--scratch-limit", "1200K").succeeded()
    assert "may overwrite 655360 meanwhile" in ran.named("warning")[0]["what"]
    assert filled.backup("--scratch-limit", "1200K").succeeded().named("warning") == []


def test_qemu_tells_by_itself_when_the_scratch_grows(filled: Scene) -> None:
    """Without its timer, the engine looks when QEMU says that a threshold was crossed."""
    slow = Mutation(
        "it looks once an hour",
        (("source/qemu/point.py", "_WATCH_EVERY = 0.2", "_WATCH_EVERY = 3600.0"),),
    )
    deaf = Mutation(
        "and hears nothing",
        (*slow.edits, ("source/qemu/monitor.py", "            told.set()", "            pass")),
    )
    for fault, code in ((slow, 4), (deaf, 0)):
        filled.engine = fault.engine(filled.folder)
        running = filled.slow_backup("--scratch-limit", "40M", milliseconds=100)
        running.wait_event("point")
        _write_all(filled)
        assert running.wait().code == code
        filled.nothing_left()


def test_the_guest_is_let_go_before_the_workers_end(filled: Scene) -> None:
    """A read that hangs does not keep the scratch growing."""
    running = filled.slow_backup("--scratch-limit", "4M", milliseconds=0)
    running.wait_event("point")
    _write_all(filled)
    jobs = filled.qemu.control.command("query-jobs")
    assert jobs == []
    running.kill()
    filled.backup().succeeded()
    filled.nothing_left()


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("fleece.delta.writer", "DeltaWriter.finish"),
        ("fleece.store.folder.sink", "DeltaFile.close_durably"),
    ],
)
def test_the_scratch_is_watched_while_the_deltas_are_made_durable(
    filled: Scene, module: str, function: str
) -> None:
    """Then the point is not needed any more: it is closed, and the backup succeeds."""
    words = filled.words("--scratch-limit", "4M")
    running = filled.slow(module, function, 2500, *words)
    while (told := running.wait_event("progress", held=True))["done"] < told["total"]:
        pass
    _write_all(filled)
    assert filled.qemu.control.command("query-jobs") == []
    assert running.wait().succeeded().named("warning")[1:] == []
    assert filled.take("incremental").disks[0].dirty_bytes == 64 * MIB
    filled.check_exact()


def _disk(size: int, *counts: int) -> GuestDisk:
    bitmaps = tuple(
        Bitmap(f"b{n}", 65536, count, True, False, True, False) for n, count in enumerate(counts)
    )
    return GuestDisk("d", "d", size, "qcow2", False, True, None, bitmaps)


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        ([], 0),
        ([(_disk(1600), None)], 100),
        ([(_disk(1600, 30, 50, 7), ("b0", "b2"))], 37),
        ([(_disk(1600, 1000, 1000), ("b0", "b1"))], 1600),
        ([(_disk(1600), None), (_disk(1600, 5), ("b0",))], 105),
    ],
)
def test_the_estimate(disks: list[tuple[GuestDisk, tuple[str, ...] | None]], expected: int) -> None:
    planned = [PlannedDisk(disk, None, merged) for disk, merged in disks]
    assert estimate((each.disk.size, each.written) for each in planned) == expected
