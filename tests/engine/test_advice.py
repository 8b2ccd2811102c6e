"""QEMU's refusals: what the guest's owner meets beside fleece, and what fleece meets itself.

docs/troubleshooting.rst quotes QEMU; what it quotes is what QEMU says here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fleece.source.qemu.monitor import CommandError, Monitor
from tests.engine.scene import INTACT, MIB, ROOT, MachineScene, Scene, wait_until
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import RigError, run, run_checked
from tests.rig.qmp import QmpError

ACTIVE = "Device has active dirty bitmaps"
NO_SNAPSHOTS = "is writable but does not support snapshots"
IN_USE = "is in use"
NOT_ROOT = "Need a root block node"
BUSY = "is busy: node is used as backing hd of"
CONFLICT = "Permission conflict on node"
NO_LOAD = "load of migration failed: Input/output error"
WRITE_LOCK = 'Failed to get "write" lock'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineScene]:
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    with Machine([Disk(image, "d0")], monitors=2) as qemu:
        yield MachineScene(qemu, tmp_path)


def _said(scene: Scene, line: str) -> str:
    """What QEMU's human monitor says to a line."""
    said = scene.qemu.control.command("human-monitor-command", {"command-line": line})
    return str(said).strip()


def _refusal(scene: Scene, command: str, **arguments: object) -> str:
    with pytest.raises(QmpError) as caught:
        scene.qemu.control.command(command, arguments)
    return str(caught.value)


def _documented(text: str) -> bool:
    page = (ROOT / "docs/troubleshooting.rst").read_text()
    return " ".join(text.split()) in " ".join(page.split())


# ---- what segments cost the guest's owner -------------------------------------------------------


@pytest.mark.parametrize(
    "text", [ACTIVE, NO_SNAPSHOTS, IN_USE, NOT_ROOT, BUSY, CONFLICT, WRITE_LOCK, NO_LOAD]
)
def test_what_qemu_says_is_in_the_documents(text: str) -> None:
    assert _documented(text)


def test_segments_forbid_going_back_to_a_snapshot_and_can_be_dropped(
    machine: MachineScene, tmp_path: Path
) -> None:
    assert _said(machine, "savevm before") == ""
    machine.backup().succeeded()
    assert _said(machine, "savevm later") == ""
    assert _said(machine, "delvm later") == ""
    assert ACTIVE in _said(machine, "loadvm before")
    machine.qemu.control.command("block_resize", {"node-name": "d0", "size": 5 * MIB})
    machine.qemu.control.command("block_resize", {"node-name": "d0", "size": 4 * MIB})

    listed = INTACT.run("bitmap", machine.source, "--json").succeeded()
    chain = listed.named("segment")[0]["chain"]
    INTACT.run("bitmap", machine.source, "--drop", chain).succeeded()
    assert _said(machine, "loadvm before") == ""

    ran = machine.backup().succeeded()
    assert ran.named("plan")[0]["mode"] == "rescan"
    machine.check_exact()
    machine.backup("--mode", "incremental").succeeded()


def test_segments_forbid_the_same_to_a_guest_that_is_off(
    machine: MachineScene, tmp_path: Path
) -> None:
    image = machine.qemu.disks["d0"].path
    assert _said(machine, "savevm before") == ""
    machine.backup().succeeded()
    (segment,) = machine.segments()
    machine.qemu.quit()

    applied = run("qemu-img", "snapshot", "-a", "before", image)
    assert ACTIVE in applied.stderr
    run_checked("qemu-img", "snapshot", "-c", "made", image)
    run_checked("qemu-img", "bitmap", "--disable", image, segment)
    assert ACTIVE in run("qemu-img", "snapshot", "-a", "before", image).stderr
    with pytest.raises(RigError, match=ACTIVE):
        _start(image, "-loadvm", "before")
    assert "in-use" in run_checked("qemu-img", "info", image)  # it ended as if it were killed

    run_checked("qemu-img", "bitmap", "--remove", image, segment)
    run_checked("qemu-img", "snapshot", "-a", "before", image)
    _start(image, "-loadvm", "before")


def _start(image: Path, *words: str) -> None:
    with Machine([Disk(image, "d0")], extra=words):
        pass


@pytest.mark.parametrize("way", ["classic", "filter"])
def test_a_living_point_forbids_snapshots_and_resizing(way: str, machine: MachineScene) -> None:
    assert _said(machine, "savevm before") == ""
    image = machine.qemu.disks["d0"].path
    backup = machine.slow_backup("--fleecing", way, milliseconds=2000)
    backup.wait_event("point")

    assert NO_SNAPSHOTS in _said(machine, "savevm during")
    assert NO_SNAPSHOTS in _said(machine, "loadvm before")
    resize = _refusal(machine, "block_resize", **{"node-name": "d0", "size": 8 * MIB})
    assert (IN_USE if way == "classic" else CONFLICT) in resize
    taken = _refusal(machine, "blockdev-snapshot-internal-sync", device="d0", name="x")
    assert NOT_ROOT in taken
    if way == "classic":
        over = {"node-name": "d0", "snapshot-file": str(image) + ".new", "format": "qcow2"}
        assert BUSY in _refusal(machine, "blockdev-snapshot-sync", **over)
    assert WRITE_LOCK in run("qemu-img", "snapshot", "-a", "before", image).stderr
    assert WRITE_LOCK in run("qemu-img", "resize", image, "8M").stderr

    backup.wait().succeeded()
    machine.check_exact()
    machine.qemu.control.command("block_resize", {"node-name": "d0", "size": 8 * MIB})


# ---- what fleece meets --------------------------------------------------------------------------


@pytest.fixture
def monitor(machine: MachineScene) -> Iterator[Monitor]:
    with Monitor(str(machine.qemu.qmp_sockets[1])) as made:
        yield made


def _hint(monitor: Monitor, command: str, arguments: Mapping[str, object], reason: str) -> str:
    """What is advised after a refusal of the real QEMU."""
    with pytest.raises(CommandError) as caught:
        monitor.execute(command, arguments)
    assert re.search(reason, caught.value.reason), caught.value.reason
    assert caught.value.hint is not None, caught.value.reason
    assert str(caught.value).endswith(f"; {caught.value.hint}")
    return caught.value.hint


def _file(path: Path | str, **more: object) -> dict[str, object]:
    return {"driver": "file", "node-name": "other", "filename": str(path)} | more


def test_a_command_that_qemu_lacks(monitor: Monitor) -> None:
    hint = _hint(monitor, "x-of-tomorrow", {}, "has not been found")
    assert "fleece doctor" in hint
    assert hint == _hint(monitor, "blockdev-add", {"driver": "nothing"}, "nvalid parameter|accept")


def test_a_file_that_another_process_has_open(monitor: Monitor, tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "other.qcow2", MIB, seed=2)
    with Machine([Disk(image, "d1")]):
        node = {"driver": "qcow2", "node-name": "o", "file": _file(image)}
        assert "another process has the file open" in _hint(monitor, "blockdev-add", node, "lock")


def test_a_server_of_somebody_else(monitor: Monitor, tmp_path: Path) -> None:
    export = {"id": "e", "type": "nbd", "node-name": "d0", "name": "e"}
    assert "run the command again" in _hint(monitor, "block-export-add", export, "not running")
    address = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
    monitor.execute("nbd-server-start", {"addr": address})
    hint = _hint(monitor, "nbd-server-start", {"addr": address}, "already running")
    assert "nbd-server-stop" in hint


def test_a_bitmap_and_a_disk_in_use(monitor: Monitor, tmp_path: Path) -> None:
    target = images.random_image(tmp_path / "target.qcow2", 4 * MIB, seed=3)
    node = {"driver": "qcow2", "node-name": "target", "file": _file(target)}
    monitor.execute("blockdev-add", node)
    monitor.execute("block-dirty-bitmap-add", {"node": "d0", "name": "b", "disabled": True})
    address = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
    monitor.execute("nbd-server-start", {"addr": address})
    export = {"id": "e", "type": "nbd", "node-name": "d0", "name": "e", "bitmaps": ["b"]}
    monitor.execute("block-export-add", export)
    bitmap = {"node": "d0", "name": "b"}
    hint = _hint(monitor, "block-dirty-bitmap-remove", bitmap, "currently in use")
    assert "wait until it has ended" in hint
    job = {"job-id": "j", "device": "d0", "target": "target", "sync": "full", "speed": 1}
    monitor.execute("blockdev-backup", job)
    resize = {"node-name": "target", "size": 8 * MIB}
    hint = _hint(monitor, "block_resize", resize, "in use|busy|Permission conflict")
    assert "something else is at work on the disk" in hint
    monitor.execute("block-job-cancel", {"device": "j", "force": True})


def test_a_file_that_qemu_may_not_use(monitor: Monitor) -> None:
    hint = _hint(monitor, "blockdev-add", _file("/sys/kernel/notes"), "Permission denied")
    assert "--scratch" in hint


def test_a_qemu_that_may_open_no_more_files(machine: MachineScene, monitor: Monitor) -> None:
    used = len([*Path(f"/proc/{machine.qemu.pid}/fd").iterdir()])
    run_checked("prlimit", "--pid", str(machine.qemu.pid), f"--nofile={used + 1}:")
    ran = machine.backup().failed(3, "Too many open files", "raise its limit")
    assert ran.named("point") == []
    run_checked("prlimit", "--pid", str(machine.qemu.pid), f"--nofile={used + 50}:")
    machine.backup().succeeded()


# ---- migration ----------------------------------------------------------------------------------


def _migrate(origin: MachineScene, socket: Path) -> str:
    """Have a machine migrate; gives how that ends."""
    ask = origin.qemu.control.command
    ask("migrate", {"uri": f"unix:{socket}"})
    wait_until(lambda: ask("query-migrate").get("status") in ("completed", "failed"), "migration")
    return str(ask("query-migrate")["status"])


def test_segments_migrate_with_an_image_that_both_hosts_see(
    machine: MachineScene, tmp_path: Path
) -> None:
    machine.backup().succeeded()
    image, socket = machine.qemu.disks["d0"].path, tmp_path / "m"
    with Machine([Disk(image, "d0")], extra=("-incoming", f"unix:{socket}")) as other:
        arrived = MachineScene(other, tmp_path)
        assert _migrate(machine, socket) == "completed"
        machine.qemu.kill()
        arrived.backup("--mode", "incremental").succeeded()


def test_a_living_point_and_a_migration(machine: MachineScene, tmp_path: Path) -> None:
    """The other QEMU does not start, and the guest runs on where it was."""
    image, socket = machine.qemu.disks["d0"].path, tmp_path / "m"
    machine.qemu.control.command("cont")
    backup = machine.slow_backup(milliseconds=2000)
    backup.wait_event("point")
    with Machine([Disk(image, "d0")], extra=("-incoming", f"unix:{socket}")) as other:
        assert _migrate(machine, socket) == "failed"
        wait_until(lambda: not other.alive, "the end of the other QEMU")
        assert NO_LOAD in other.output()
    # It may have seen the guest stopped for the moment in which QEMU believed to have left.
    assert backup.wait().code in (0, 4)
    assert machine.status == "running"
    machine.backup().succeeded()
    machine.nothing_left()
    machine.check_exact()
