"""qemu-storage-daemon: a guest's disks, with monitor and block jobs, but without a guest."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.rig.disk import Disk
from tests.rig.process import Child, find_tool
from tests.rig.qemu import QemuProcess
from tests.rig.writer import FuseWriter, Writer

__all__ = ["Disk", "StorageDaemon", "fuse_usable"]


def fuse_usable() -> bool:
    """Whether this host offers FUSE; where not, use `tests.rig.machine.Machine`."""
    return os.access("/dev/fuse", os.R_OK | os.W_OK)


def _own_mounts() -> list[str]:
    """Words that give a command mounts of its own: they vanish with it, even if it is killed."""
    if os.geteuid() == 0:
        return ["unshare", "--mount"]
    return ["unshare", "--user", "--map-root-user", "--mount"]


class StorageDaemon(QemuProcess):
    """A running qemu-storage-daemon.

    Each disk is written through a FUSE export; the NBD server is free for the code under test.
    The exports are mounted where only the daemon sees them, and reached through ``/proc``.

    For these take a machine: the commands stop, query-status and the human monitor's, which the
    daemon has not; an NBD export of the live node itself (of an overlay of it is all right),
    because a writable FUSE export claims the permission to resize the node.
    """

    def _spawn(self, log: Path) -> Child:
        command = [find_tool("qemu-storage-daemon")]
        for disk in self.disks.values():
            mountpoint = self._mountpoint(disk)
            mountpoint.touch()
            command += ["--blockdev", json.dumps(disk.blockdev())]
            command += ["--export", _fuse_export(disk, mountpoint)]
        for i, path in enumerate([self._control_socket, *self.qmp_sockets]):
            command += ["--chardev", f"socket,id=mon{i},path={path},server=on,wait=off"]
            command += ["--monitor", f"chardev=mon{i}"]
        return Child(command, log, prefix=_own_mounts())

    def _make_writer(self, disk: Disk) -> Writer:
        return FuseWriter(Path(f"/proc/{self.pid}/root{self._mountpoint(disk)}"))

    def _mountpoint(self, disk: Disk) -> Path:
        return self.folder / f"{disk.node}.disk"


def _fuse_export(disk: Disk, mountpoint: Path) -> str:
    return (
        f"type=fuse,id=rig-{disk.node},node-name={disk.node},mountpoint={mountpoint},"
        "writable=on,allow-other=off"
    )
