"""A disk that the guest no longer has: it is reported once, and recorded."""

from __future__ import annotations

from pathlib import Path

from fleece.events import DiskGone, Event
from tests.engine.scene import MIB, daemon
from tests.rig import images
from tests.rig.disk import Disk


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
