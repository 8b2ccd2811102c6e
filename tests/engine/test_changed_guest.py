"""What a guest's owner does between two points: disks resized, removed, snapshotted, put back."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

import fleece
from fleece.events import DiskGone, Event
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, MachineScene, Scene, daemon, reasons
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run_checked

SIZES = (20 * MIB, 33 * MIB + 512, 7 * MIB + 512, 7 * MIB, 40 * MIB, 512, 3 * MIB)


def _raw(scene: Scene, target: Path) -> Path:
    """What the disk holds now."""
    scene.writer().flush()
    image = scene.qemu.disks["d0"].path
    run_checked("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, target)
    return target


@pytest.mark.parametrize("transport", ["pull", "push"])
def test_a_resized_disk_stores_what_differs(tmp_path: Path, transport: str) -> None:
    """And every point of it can be restored, proven, merged."""
    image = images.random_image(tmp_path / "d0.qcow2", SIZES[0], seed=1, fill=1.0)
    with Machine([Disk(image, "d0")]) as qemu:
        scene = MachineScene(qemu, tmp_path)
        scene.way = ("--transport", transport)
        scene.backup().succeeded()
        states = [_raw(scene, tmp_path / "state-0.raw")]
        for number, (old, size) in enumerate(itertools.pairwise(SIZES), 1):
            qemu.control.command("block_resize", {"node-name": "d0", "size": size})
            scene.backup("--mode", "incremental").failed(4, "size changed")
            scene.writer().write(size // 2 // 512 * 512, b"x" * 512)
            ran = scene.backup().succeeded()
            (plan,) = ran.named("plan")
            assert f"size changed from {old} to {size} bytes" in plan["reason"]
            (disk,) = ran.result["disks"]
            assert (disk["mode"], disk["size"]) == ("rescan", size)
            grown = max(0, size - old)
            assert disk["dirty_bytes"] <= grown + 3 * KIB64
            assert disk["stored_bytes"] < 4 * KIB64 + MIB
            states.append(_raw(scene, tmp_path / f"state-{number}.raw"))
            scene.writer().write(0, os.urandom(512))
            assert scene.backup().succeeded().result["mode"] == "incremental"
            scene.check_exact()
            scene.nothing_left()
    scene.verify()
    points = fleece.FolderStore(scene.store).catalogue().points
    for state, point in zip(states, points[:1] + points[1::2], strict=True):
        restored = scene.restore("d0", point.id)
        assert restored.stat().st_size == state.stat().st_size
        run_checked("qemu-img", "compare", "-f", "raw", "-F", "raw", restored, state)
        restored.unlink()
    chain = tmp_path / "chain"
    INTACT.run("restore", scene.store, "latest", "vd-d0", chain, "--as-chain").succeeded()
    INTACT.run("diff", scene.store, points[0].id, "latest").succeeded()
    INTACT.run("map", scene.store, "latest", "vd-d0").succeeded()
    newest = scene.restore("d0")
    INTACT.run("prune", scene.store, "--keep-last", "2").succeeded()
    scene.verify()
    run_checked("qemu-img", "compare", "-f", "raw", "-F", "raw", newest, scene.restore("d0"))
    top = sorted(chain.glob("*.qcow2"))[-1]
    run_checked("qemu-img", "compare", "-f", "raw", "-F", "qcow2", newest, top)


def test_a_disk_that_is_removed_is_said_and_recorded_to_be_gone(tmp_path: Path) -> None:
    paths = [images.random_image(tmp_path / f"d{n}.qcow2", 2 * MIB, seed=n) for n in range(3)]
    disks = [Disk(path, f"d{n}") for n, path in enumerate(paths)]
    with daemon(tmp_path, *disks) as scene:
        first = scene.take().point
        heard: list[Event] = []
        scene.take(disks=["d0"], listener=heard.append)
        assert not [event for event in heard if isinstance(event, DiskGone)], "a choice is none"
    with daemon(tmp_path, *disks[:2]) as scene:
        ran = scene.backup().succeeded()
        assert ran.named("gone") == [{"event": "gone", "disk": "d2", "point": first}]
        assert scene.backup().succeeded().named("gone") == [], "it is said once"
        rows = scene.engine.run("list", scene.store, "--json").named("point")
        assert [row["disk"] for row in rows if row["gone"] == ["d2"]] == ["d0", "d1"]
        scene.check_exact()
        scene.restore("d2", first).unlink()
    with daemon(tmp_path, *disks) as scene:
        result = scene.take()
        assert result.mode == "incremental", "it came back with its bitmap, which goes on"
        scene.check_exact()
    with daemon(tmp_path, disks[0]) as scene:
        assert [item["disk"] for item in scene.backup().named("gone")] == ["d1", "d2"]


def test_an_external_snapshot_is_a_rescan(tmp_path: Path) -> None:
    """The bitmaps stay below, and the new top knows of nothing."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with Machine([Disk(image, "d0")]) as qemu:
        scene = MachineScene(qemu, tmp_path)
        scene.take()
        top = tmp_path / "top.qcow2"
        arguments = {"node-name": "d0", "snapshot-file": str(top), "snapshot-node-name": "top"}
        qemu.control.command("blockdev-snapshot-sync", arguments)
        scene.writer().write(MIB, os.urandom(KIB64))
        heard: list[Event] = []
        result = scene.take(listener=heard.append)
        ((mode, reason),) = reasons(heard).values()
        assert mode == "rescan"
        assert "bitmap" in reason
        assert result.disks[0].dirty_bytes == KIB64
        scene.writer().flush()
        restored = scene.restore("d0")
        run_checked("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", top, restored)
        scene.writer().write(2 * MIB, b"y")
        assert scene.take().mode == "incremental"
        scene.verify()
        scene.nothing_left()


def test_an_image_that_was_put_back_goes_on_from_the_point_that_it_knows(tmp_path: Path) -> None:
    """Its bitmaps are consistent, and lead to an older point than the store's newest."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        scene.qemu.quit()
        shutil.copy(image, tmp_path / "copy.qcow2")
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.writer().write(MIB, os.urandom(KIB64))
        scene.take()
        scene.qemu.quit()
        shutil.copy(tmp_path / "copy.qcow2", image)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.writer().write(4 * MIB, os.urandom(KIB64))
        result = scene.take()
        assert (result.mode, result.disks[0].dirty_bytes) == ("incremental", KIB64)
        scene.check_exact()
        scene.verify()
        assert fleece.FolderStore(scene.store).catalogue().find("latest", GUEST).complete
