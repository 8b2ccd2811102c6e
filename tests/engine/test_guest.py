"""A booted Linux guest whose programs write all the while: each point is one point in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import INTACT, MIB, Scene
from tests.rig import consistency, images
from tests.rig.disk import Disk, ServedDisk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine, boot_check

DEVICES = ("vd-d0", "vd-d1")


@dataclass(frozen=True)
class Taken:
    """A point of the writing guest, and what the guest had been told to be durable before it."""

    result: fleece.BackupResult
    acked: int


@dataclass(frozen=True)
class Load:
    """What a run of the guest left.

    Attributes:
        store: with three points.
        taken: the points.
        progress: records that were acknowledged after the last one.
    """

    store: Path
    taken: tuple[Taken, ...]
    progress: int

    def restore(self, folder: Path, point: str) -> list[Path]:
        """Both disks at a point, raw."""
        folder.mkdir()
        targets = [folder / device for device in DEVICES]
        for device, target in zip(DEVICES, targets, strict=True):
            fleece.restore(fleece.open_store(self.store), point, device, str(target))
        return targets


@pytest.fixture(scope="module")
def load(files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("load")
    disks = [
        Disk(images.make_disk(folder / "d0.qcow2", 64 * MIB, fs="ext4"), "d0"),
        Disk(images.make_disk(folder / "d1.raw", 64 * MIB, "raw", fs="ext4"), "d1", "raw"),
    ]
    with GuestMachine(files, disks, append="rig.nslots=64 rig.delay=1000") as machine:
        scene = Scene(machine, folder)
        machine.wait_ready()
        machine.wait_acked(20)
        taken = []
        for _ in range(3):
            acked = machine.acked
            taken.append(Taken(scene.take(), acked))
            scene.nothing_left()
            machine.wait_acked(machine.acked + 30)
        last = machine.acked
        machine.wait_acked(last + 30)
        assert machine.control.command("query-status")["status"] == "running"
        scene.only_newest_segment()
        yield Load(scene.store, tuple(taken), machine.acked - last)


def test_the_guest_went_on(load: Load) -> None:
    assert load.progress >= 30
    assert [taken.result.mode for taken in load.taken] == ["full", "incremental", "incremental"]
    dirty = [sum(disk.dirty_bytes for disk in taken.result.disks) for taken in load.taken]
    assert 0 < dirty[1] < dirty[0]
    assert 0 < dirty[2] < dirty[0]


@pytest.mark.parametrize("number", range(3))
def test_each_point_is_one_point_in_time(load: Load, number: int, tmp_path: Path) -> None:
    taken = load.taken[number]
    restored = load.restore(tmp_path / "restored", taken.result.point)
    report = consistency.check(restored, acked=taken.acked)
    assert report.problems == []
    assert all(min(image.last.values()) >= taken.acked > 0 for image in report.images)
    for target, disk in zip(restored, taken.result.disks, strict=True):
        ran = INTACT.run("root", target, "--format", "raw").succeeded()
        assert ran.out == disk.root + "\n"


def test_the_consistency_check_sees_disks_of_two_points(load: Load, tmp_path: Path) -> None:
    """The judge can say no: one disk of the first point, the other of the last."""
    first = load.restore(tmp_path / "first", load.taken[0].result.point)
    last = load.restore(tmp_path / "last", load.taken[2].result.point)
    assert not consistency.check([first[0], last[1]]).ok
    assert not consistency.check(first, acked=load.taken[2].acked).ok


def test_the_last_point_boots(load: Load, files: GuestFiles, tmp_path: Path) -> None:
    restored = load.restore(tmp_path / "restored", load.taken[2].result.point)
    boot_check(files, [Disk(path, path.name, "raw") for path in restored])


def test_a_guest_boots_straight_from_the_backup(
    load: Load, files: GuestFiles, tmp_path: Path
) -> None:
    """It mounts the served disks and writes to them; the store does not notice."""
    before = {path: path.read_bytes() for path in load.store.rglob("*.fleece")}
    point = load.taken[1].result.point
    with fleece.serve(
        fleece.open_store(load.store), point, options=fleece.ServeOptions(writable=True)
    ) as served:
        disks = [
            ServedDisk(Path(disk.uri.partition("socket=")[2]), f"d{i}", "raw", disk.disk)
            for i, disk in enumerate(served.disks)
        ]
        with GuestMachine(files, disks, append="rig.nslots=64 rig.delay=1000") as machine:
            machine.wait_ready()
            machine.wait_acked(30)
            console = machine.console()
        served.check()
        assert served.problems == 0
    assert "RIG mounted /dev/vda" in console
    assert "RIG mounted /dev/vdb" in console
    assert before == {path: path.read_bytes() for path in load.store.rglob("*.fleece")}


def test_a_store_of_a_guest_is_whole(load: Load) -> None:
    INTACT.run("verify", load.store).succeeded()
