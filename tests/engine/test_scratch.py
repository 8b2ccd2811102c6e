"""The guest comes first: a scratch that runs full costs the backup, never the guest."""

from __future__ import annotations

from pathlib import Path

import fleece
from tests.engine.scene import INTACT, Scene, nothing_left, small_tmpfs
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine

MIB = images.MIB
FAST = "rig.delay=0"


def _disks(folder: Path) -> list[Disk]:
    """A disk that the guest writes, and one that takes the backup a while to read."""
    written = images.make_disk(folder / "a.qcow2", 128 * MIB, fs="ext4")
    large = images.random_image(folder / "b.qcow2", 96 * MIB, seed=3, fill=1.0)
    return [Disk(written, "a"), Disk(large, "b")]


def test_the_backup_gives_up_before_the_scratch_is_full(files: GuestFiles, tmp_path: Path) -> None:
    with small_tmpfs(2) as scratch, GuestMachine(files, _disks(tmp_path), append=FAST) as guest:
        guest.wait_acked(3)
        scene = Scene(guest, tmp_path)
        scene.scratch = scratch
        ran = scene.slow_backup(milliseconds=1000).wait()
        ran.failed(4, "gave up before the guest", "--scratch")
        nothing_left(guest, scratch)
        stopped = [event for event in guest.control.events if event["event"] == "BLOCK_IO_ERROR"]
        assert stopped == []
        guest.wait_acked(guest.acked + 5)
        assert fleece.FolderStore(scene.store).catalogue().points == ()


def test_a_guest_that_a_dead_run_left_stopped_goes_on(files: GuestFiles, tmp_path: Path) -> None:
    with small_tmpfs(2) as scratch, GuestMachine(files, _disks(tmp_path), append=FAST) as guest:
        guest.wait_acked(3)
        scene = Scene(guest, tmp_path)
        scene.scratch = scratch
        running = scene.slow_backup(milliseconds=1000)
        running.wait_event("point")
        running.kill()
        guest.control.wait_event("BLOCK_IO_ERROR", 60)
        acked = guest.acked
        ran = INTACT.run("clean", scene.source, "--scratch", scratch, "--json").succeeded()
        assert "stop of the guest" in [event["kind"] for event in ran.named("removed")]
        nothing_left(guest, scratch)
        guest.wait_acked(acked + 5)
