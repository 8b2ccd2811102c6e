"""What is in a disk: volumes, and the files of their file systems."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FileKind(enum.StrEnum):
    """What an entry of a folder is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    PIPE = "pipe"
    SOCKET = "socket"
    CHARACTER = "character-device"
    BLOCK = "block-device"
    OTHER = "other"


@dataclass(frozen=True)
class Volume:
    """A part of a disk: a partition, a logical volume, or all of a disk without a table.

    Attributes:
        number: of the partition in its table; logical volumes are counted on behind those.
        name: of the partition in its table, or group/volume; may be empty.
        label: of the file system; may be empty.
        type: of what is in it, such as `ext4`, `luks` or `unknown`.
        start: its first byte of the disk; None: a logical volume, which may be in pieces.
        size: in bytes.
        obstacle: why its files cannot be read; None: they can.
    """

    number: int
    name: str
    label: str
    type: str
    start: int | None
    size: int
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file, folder, link or other thing in a file system.

    Names are as Python has them: bytes that are no UTF-8 are lone surrogates (`os.fsencode`).

    Attributes:
        volume: the number of its volume.
        id: of the thing in its file system; two names of one file have the same.
        path: from the root of the file system; begins with `/`.
        kind: what it is.
        size: in bytes.
        mode: the 12 permission bits; None: the file system has none.
        mtime: when it was last modified, in nanoseconds since 1970; None: not known.
        uid, gid: who owns it; None: the file system does not say.
        target: where a link points to; None for all else.
    """

    volume: int
    id: int
    path: str
    kind: FileKind
    size: int
    mode: int | None
    mtime: int | None
    uid: int | None
    gid: int | None
    target: str | None

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]
