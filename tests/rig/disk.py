"""A disk image and its place in a QEMU process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Disk:
    """An image file and the names that it gets in QEMU.

    Attributes:
        path: the image.
        node: the format node's name; the file's own node is called ``NODE-file``.
        fmt: ``qcow2`` or ``raw``.
    """

    path: Path
    node: str
    fmt: str = "qcow2"

    @property
    def device(self) -> str:
        """The id of the disk's virtio-blk device in a machine."""
        return f"vd-{self.node}"

    @property
    def backend(self) -> str:
        """The QOM path through which a machine's device writes to the disk."""
        return f"/machine/peripheral/{self.device}/virtio-backend"

    def blockdev(self) -> dict[str, Any]:
        """The arguments of blockdev-add."""
        file = {
            "driver": "file",
            "node-name": f"{self.node}-file",
            "filename": str(self.path),
            "discard": "unmap",
        }
        return {"driver": self.fmt, "node-name": self.node, "discard": "unmap", "file": file}


@dataclass(frozen=True)
class ServedDisk(Disk):
    """An export on a unix socket, which is `path`, that serves a disk under the name `export`."""

    export: str = ""

    def blockdev(self) -> dict[str, Any]:
        """The arguments of blockdev-add."""
        server = {"type": "unix", "path": str(self.path)}
        file = {
            "driver": "nbd",
            "node-name": f"{self.node}-file",
            "server": server,
            "export": self.export,
        }
        return {"driver": "raw", "node-name": self.node, "discard": "unmap", "file": file}
