"""Images that change under their bitmaps: snapshots, commits, older copies. All of it is noticed.

After each, the next backup says so in one line, reads all, stores what differs, and is exact; or it
goes on from an older point, if the image still has the bitmap of what was written since that one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.events import Event
from tests.engine.scene import GUEST, KIB64, MIB, Scene, reasons
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run, run_checked
from tests.rig.qmp import QmpError

SIZE = 8 * MIB
DISK = "vd-d0"


class Snapshots(Scene):
    """A machine with one disk, over which snapshots are laid."""

    def __init__(self, qemu: Machine, folder: Path) -> None:
        super().__init__(qemu, folder)
        self.top = qemu.disks["d0"].path

    def snapshot(self, node: str) -> None:
        """Lay a new overlay over the disk, as an external snapshot does."""
        path = self.folder / f"{node}.qcow2"
        under = ("-u", "-b", str(self.top), "-F", "qcow2")
        run_checked("qemu-img", "create", "-q", "-f", "qcow2", *under, path, str(SIZE))
        blockdev = Disk(path, node).blockdev() | {"backing": None}
        self.qemu.control.command("blockdev-add", blockdev)
        self.qemu.control.command("blockdev-snapshot", {"node": "d0", "overlay": node})
        self.top = path

    def commit(self, node: str) -> None:
        """Write the overlay into the disk below it, and continue on that."""
        control = self.qemu.control
        control.command("block-commit", {"job-id": "commit", "device": node})
        control.wait_event("BLOCK_JOB_READY", device="commit")
        control.command("block-job-complete", {"device": "commit"})
        control.wait_event("BLOCK_JOB_COMPLETED", device="commit")
        control.command("blockdev-del", {"node-name": node})
        self.top = self.qemu.disks["d0"].path

    def rescanned(self, most: int) -> str:
        """Back up: a rescan that stores no more than that many bytes; gives its reason."""
        heard: list[Event] = []
        result = self.take(listener=heard.append)
        mode, reason = reasons(heard)[DISK]
        assert (mode, result.mode, "\n" in reason) == ("rescan", "rescan", False)
        assert result.disks[0].read_bytes == SIZE
        assert 0 < result.disks[0].dirty_bytes <= most
        self.exact()
        return reason

    def goes_back(self, most: int) -> None:
        """Back up: incremental since an older point than the newest."""
        newest = fleece.open_store(self.store).catalogue().of_guest(GUEST)[-1].id
        heard: list[Event] = []
        result = self.take(listener=heard.append)
        mode, reason = reasons(heard)[DISK]
        assert (mode, result.mode) == ("incremental", "incremental")
        assert newest not in reason
        assert result.disks[0].dirty_bytes <= most
        self.exact()

    def exact(self) -> None:
        """The newest point is what the disk is, and the store is sound."""
        self.writer().flush()
        raw = self.restore(DISK)
        done = run("qemu-img", "compare", "-U", "-F", "raw", self.top, raw)
        assert done.returncode == 0, done.stdout + done.stderr
        raw.unlink()
        self.verify()
        self.nothing_left()

    def goes_on(self) -> None:
        """The next backups are incremental."""
        for _ in range(2):
            self.write(5)
            assert self.take("incremental").disks[0].dirty_bytes == KIB64
            self.exact()

    def plugged(self) -> list[str]:
        """The node that the device has."""
        found = self.qemu.control.command("query-block")
        return [device["inserted"]["node-name"] for device in found if device.get("inserted")]

    def write(self, *places: int) -> None:
        """Write a leaf of each of these MiB of the disk."""
        for place in places:
            self.writer().write(place * MIB, os.urandom(KIB64))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Snapshots]:
    """A disk of 8 MiB, of which there is a point."""
    path = images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1, fill=1.0)
    with Machine([Disk(path, "d0")]) as qemu:
        made = Snapshots(qemu, tmp_path)
        made.take()
        yield made


def test_an_external_snapshot(scene: Snapshots) -> None:
    scene.write(1)
    scene.snapshot("over")
    scene.write(2)
    reason = scene.rescanned(2 * KIB64)
    assert "no bitmap of what was written since point" in reason
    scene.goes_on()


def test_a_snapshot_that_is_committed_with_points_in_between(scene: Snapshots) -> None:
    scene.write(1)
    scene.snapshot("over")
    scene.write(2)
    scene.rescanned(2 * KIB64)
    scene.write(3)
    scene.commit("over")
    scene.write(4)
    scene.goes_back(4 * KIB64)
    scene.goes_on()
    assert len(scene.segments()) == 1


def test_a_snapshot_that_is_committed_before_the_next_point(scene: Snapshots) -> None:
    """QEMU marks what a commit writes: the disk's own bitmap knows all."""
    scene.write(1)
    scene.snapshot("over")
    scene.write(2, 3)
    scene.commit("over")
    scene.write(4)
    assert scene.take().mode == "incremental"
    scene.exact()


def test_a_snapshot_that_is_committed_while_qemu_is_off(scene: Snapshots) -> None:
    """The same for qemu-img commit."""
    scene.write(1)
    scene.snapshot("over")
    scene.write(2, 3)
    top = scene.top
    scene.qemu.quit()
    run_checked("qemu-img", "commit", "-q", "-f", "qcow2", top)
    scene.qemu.start()
    scene.top = scene.qemu.disks["d0"].path
    scene.write(4)
    assert scene.take().mode == "incremental"
    scene.exact()


def test_a_snapshot_that_is_thrown_away(scene: Snapshots) -> None:
    """The image is as it was before the snapshot, its bitmaps too; the newest point is of later."""
    scene.write(1)
    scene.snapshot("over")
    scene.write(2)
    scene.rescanned(2 * KIB64)
    scene.qemu.restart()
    scene.top = scene.qemu.disks["d0"].path
    scene.write(3)
    scene.goes_back(2 * KIB64)
    scene.goes_on()


@pytest.mark.parametrize("points", [1, 2])
def test_an_image_that_was_replaced_by_an_older_copy(points: int, scene: Snapshots) -> None:
    """Its bitmaps are consistent, and lead to an older point."""
    path, copy = scene.top, scene.folder / "copy"
    scene.write(1)
    scene.qemu.quit()
    shutil.copy(path, copy)
    scene.qemu.start()
    for place in range(points):
        scene.write(2 + place)
        assert scene.take("incremental").mode == "incremental"
    scene.qemu.quit()
    shutil.copy(copy, path)
    scene.qemu.start()
    scene.write(5)
    scene.goes_back(2 * KIB64)
    scene.goes_on()


def test_an_older_copy_of_after_the_newest_point(scene: Snapshots) -> None:
    """Nothing that the chain holds is missing: its own bitmap says what differs."""
    path, copy = scene.top, scene.folder / "copy"
    scene.write(1)
    scene.qemu.quit()
    shutil.copy(path, copy)
    scene.qemu.start()
    scene.write(2)
    scene.qemu.quit()
    shutil.copy(copy, path)
    scene.qemu.start()
    scene.write(3)
    assert scene.take().disks[0].dirty_bytes == 2 * KIB64
    scene.exact()


def test_an_internal_snapshot(tmp_path: Path) -> None:
    """QEMU applies none while there are bitmaps; without them all is read."""
    path = images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1, fill=1.0)
    run_checked("qemu-img", "snapshot", "-c", "before", path)
    with Machine([Disk(path, "d0")]) as qemu:
        scene = Snapshots(qemu, tmp_path)
        scene.write(1)
        scene.take()
        qemu.quit()
        refused = run("qemu-img", "snapshot", "-a", "before", path)
        assert refused.returncode != 0, refused.stdout
        for name in _bitmaps(path):
            run_checked("qemu-img", "bitmap", "--remove", path, name)
        run_checked("qemu-img", "snapshot", "-a", "before", path)
        qemu.start()
        assert "no bitmap" in scene.rescanned(KIB64)
        scene.goes_on()


def _bitmaps(path: Path) -> list[str]:
    info = json.loads(run_checked("qemu-img", "info", "--output=json", path))
    return [item["name"] for item in info["format-specific"]["data"]["bitmaps"]]


def test_a_bitmap_that_somebody_removed(scene: Snapshots) -> None:
    scene.write(1)
    (name,) = scene.segments()
    scene.qemu.control.command("block-dirty-bitmap-remove", {"node": "d0", "name": name})
    scene.write(2)
    assert "no bitmap" in scene.rescanned(2 * KIB64)
    scene.goes_on()


def test_the_reason_names_the_newest_point(scene: Snapshots) -> None:
    newest = fleece.open_store(scene.store).catalogue().of_guest(GUEST)[-1].id
    scene.snapshot("over")
    scene.write(1)
    assert newest in scene.rescanned(KIB64)


@pytest.mark.parametrize("fleecing", ["filter", "classic"])
@pytest.mark.parametrize("then", ["stays", "is committed", "is committed later"])
def test_a_snapshot_in_mid_backup(fleecing: str, then: str, scene: Snapshots) -> None:
    """Where QEMU lets somebody take one, the older segment is in an image that is read-only then.

    Later points lead back to it at most as far as it is right.
    """
    refused: list[str] = []

    def listen(event: Event) -> None:
        if event.name == "point":
            scene.write(0, 1)
            try:
                scene.snapshot("s1")
            except QmpError as error:
                refused.append(str(error))
            scene.write(1, 2)

    scene.write(3)
    live = scene.folder / "live"
    scene.writer().flush()
    run_checked("qemu-img", "convert", "-U", "-O", "raw", scene.top, live)
    result = scene.take(fleecing=fleecing, listener=listen)
    assert result.mode == "incremental"
    restored = scene.restore(DISK)
    assert restored.read_bytes() == live.read_bytes()
    scene.nothing_left()
    if refused:
        assert fleecing == "classic"
        return
    scene.write(4)
    if then == "is committed":
        scene.commit("s1")
    _next(scene, fleecing)
    if then == "is committed later":
        scene.write(6)
        scene.commit("s1")
        _next(scene, fleecing)
    scene.goes_on()
    assert scene.plugged() == ["d0" if then != "stays" else "s1"]


def _next(scene: Snapshots, fleecing: str) -> None:
    """Two more points are exact, whatever they are; the later one is incremental."""
    scene.take(fleecing=fleecing)
    scene.exact()
    scene.write(5)
    assert scene.take("incremental", fleecing=fleecing).mode == "incremental"
    scene.exact()
