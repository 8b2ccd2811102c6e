"""XFS, by dissect.xfs; what that gets wrong is put right or refused here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from dissect.xfs.c_xfs import c_xfs
from dissect.xfs.xfs import XFS, fsb_to_bb

from fleece.files.model import FileKind
from fleece.files.reader.tree import (
    MOST_LINK,
    DamagedError,
    Node,
    Piece,
    Run,
    UnsupportedError,
    kind_of,
    read_runs,
)

_UNDERSTOOD = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
"""Incompatible features (fs/xfs/libxfs/xfs_format.h) with which the library reads what is there:
file types in folders, sparse inodes, another uuid in metadata, big times, large extent counts,
exchange of ranges, parent pointers."""


class XfsTree:
    """One XFS.

    Args:
        volume: to read.
        size: of it in bytes.
    """

    def __init__(self, volume: BinaryIO, size: int) -> None:
        self._volume = volume
        self._size = size
        self._fs = XFS(volume)
        block = self._fs.sb
        if self._fs.version not in (4, 5):
            raise UnsupportedError(f"XFS of version {self._fs.version}")
        if self._fs.version == 5 and block.sb_features_incompat & ~_UNDERSTOOD:
            features = block.sb_features_incompat & ~_UNDERSTOOD
            raise UnsupportedError(f"XFS with the features {features:#x}")
        if block.sb_dirblklog:
            raise UnsupportedError("XFS whose folders have blocks of another size than its files")
        self.root = int(block.sb_rootino)
        self.label: str = self._fs.name
        self.type = "xfs"
        self.folds_case = False
        self.warnings: list[str] = []

    def node(self, number: int) -> Node:
        """What an inode is."""
        held = self._fs.get_inode(number)
        inode = held.inode
        kind = kind_of(inode.di_mode)
        return Node(
            number,
            kind,
            held.size,
            inode.di_mode & 0o7777,
            held.mtime_ns,
            inode.di_uid,
            inode.di_gid,
            self._target(held) if kind is FileKind.LINK else None,
        )

    def children(self, number: int) -> Iterator[tuple[str, int]]:
        """A folder's names."""
        folder = self._fs.get_inode(number)
        if folder.size > self._size:
            raise DamagedError(f"a folder of {folder.size} bytes")
        for child in folder.iterdir():
            if child.filename not in (".", ".."):
                yield child.filename, child.inum

    def pieces(self, number: int) -> Iterator[Piece]:
        """A file's data."""
        file = self._fs.get_inode(number)
        if file.inode.di_flags & c_xfs.XFS_DIFLAG_REALTIME:
            raise UnsupportedError("its data is on a realtime device")
        yield from read_runs(self._volume, self._runs(file), file.size, self._size)

    def _runs(self, file: Any) -> Iterator[Run]:
        """Where a file's data is; the library's own list takes unwritten extents for data."""
        unit, block = self._fs.block_size, self._fs.sb
        for offset, start, count, unwritten in file._iter_blocks():
            group, number = fsb_to_bb(start, block.sb_agblklog)
            place = None if unwritten else (group * block.sb_agblocks + number) * unit
            yield Run(offset * unit, place, count * unit)

    def _target(self, link: Any) -> str:
        if link.size > MOST_LINK:
            raise DamagedError(f"a link of {link.size} bytes")
        target: str = link.link
        return target
