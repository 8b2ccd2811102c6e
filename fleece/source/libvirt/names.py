"""The names of what fleece makes in libvirt: a checkpoint for each point, and its work folder.

A checkpoint is a bitmap of its own name on each of its disks, and records from the point on until
it is deleted. So one point's checkpoint has nothing to do with another's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fleece.source.workfolder import PREFIX, SOCKET, folder_name

_FOLDER = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-([0-9a-f]{{10}})")


@dataclass(frozen=True)
class FolderName:
    """The name of a point's work folder."""

    chain_id: str
    point: str

    def __str__(self) -> str:
        return folder_name(self.chain_id, self.point)

    @staticmethod
    def parse(name: str) -> FolderName | None:
        """The point that a work folder is of, by its name; None: it is not ours."""
        found = _FOLDER.fullmatch(name)
        return None if found is None else FolderName(found[1], found[2])


def scratch_name(number: int) -> str:
    """The name of a disk's scratch file in the work folder."""
    return f"s{number}.qcow2"


def socket_in(folder: Path) -> Path:
    """Where QEMU's NBD server listens for a point."""
    return folder / SOCKET
