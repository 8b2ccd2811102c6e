"""ext2, ext3 and ext4, by dissect.extfs; what that gets wrong is put right or refused here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from dissect.extfs.c_ext import c_ext
from dissect.extfs.extfs import ExtFS, INode

from fleece.files.model import FileKind
from fleece.files.reader.tree import (
    MOST_LINK,
    DamagedError,
    Node,
    Piece,
    UnsupportedError,
    kind_of,
    read_runs,
    read_stream,
    runs_of,
)

_UNDERSTOOD = (
    c_ext.EXT2_FEATURE_INCOMPAT_FILETYPE
    | c_ext.EXT3_FEATURE_INCOMPAT_RECOVER
    | c_ext.EXT4_FEATURE_INCOMPAT_EXTENTS
    | c_ext.EXT4_FEATURE_INCOMPAT_64BIT
    | c_ext.EXT4_FEATURE_INCOMPAT_MMP
    | c_ext.EXT4_FEATURE_INCOMPAT_FLEX_BG
    | c_ext.EXT4_FEATURE_INCOMPAT_EA_INODE
    | c_ext.EXT4_FEATURE_INCOMPAT_CSUM_SEED
    | c_ext.EXT4_FEATURE_INCOMPAT_LARGEDIR
    | c_ext.EXT4_FEATURE_INCOMPAT_INLINE_DATA
    | c_ext.EXT4_FEATURE_INCOMPAT_ENCRYPT
    | 0x20000  # casefold
)
"""Incompatible features with which the library reads what is there."""

_SMALLEST_NAME = 12
"""Bytes of the smallest entry of a folder."""

_INLINE = 60
"""Bytes of a file that fit into its inode."""


class ExtTree:
    """One ext2, ext3 or ext4.

    Args:
        volume: to read.
        size: of it in bytes.
    """

    def __init__(self, volume: BinaryIO, size: int) -> None:
        self._volume = volume
        self._size = size
        self._fs = ExtFS(volume)
        features = self._fs.sb.s_feature_incompat
        if features & ~_UNDERSTOOD:
            raise UnsupportedError(f"ext4 with the features {features & ~_UNDERSTOOD:#x}")
        # The library takes the number of inodes for one more than the last inode's number.
        self._fs.sb.s_inodes_count += 1
        self.root = int(c_ext.EXT2_ROOT_INO)
        self.label: str = self._fs.volume_name
        self.type = (
            f"ext{self._fs.type.value if hasattr(self._fs.type, 'value') else self._fs.type}"
        )
        self.folds_case = False
        self.warnings = []
        if features & c_ext.EXT3_FEATURE_INCOMPAT_RECOVER:
            self.warnings.append(
                "its journal is not empty: what the guest had not yet written to its place is "
                "missing or old (a point that is frozen by the guest agent has none of that)"
            )

    def node(self, number: int) -> Node:
        """What an inode is."""
        held = self._inode(number)
        inode = held.inode
        kind = kind_of(inode.i_mode)
        return Node(
            number,
            kind,
            held.size,
            inode.i_mode & 0o7777,
            held.mtime_ns,
            inode.i_uid | inode.i_uid_high << 16,
            inode.i_gid | inode.i_gid_high << 16,
            self._target(held) if kind is FileKind.LINK else None,
        )

    def children(self, number: int) -> Iterator[tuple[str, int]]:
        """A folder's names."""
        folder = self._inode(number)
        self._refuse_encrypted(folder)
        if folder.size > self._size:
            raise DamagedError(f"a folder of {folder.size} bytes")
        # The library stops where no entry of the smallest size would end: one too early.
        folder.size = folder.size + _SMALLEST_NAME
        for child in folder.iterdir():
            if child.filename not in (".", ".."):
                yield child.filename, child.inum

    def pieces(self, number: int) -> Iterator[Piece]:
        """A file's data."""
        file = self._inode(number)
        self._refuse_encrypted(file)
        if file.inode.i_flags & c_ext.EXT4_INLINE_DATA_FL:
            if file.size > _INLINE:
                raise UnsupportedError("its data is inline, in an extended attribute")
            yield from read_stream(file.open(), file.size, self._size)
            return
        blocks = file.dataruns()
        if not file.inode.i_flags & c_ext.EXT4_EXTENTS_FL:
            # Block 0 means a hole; the library forgets that for the last run.
            blocks = [(start or None, count) for start, count in blocks]
        runs = runs_of(blocks, self._fs.block_size)
        yield from read_runs(self._volume, runs, file.size, self._size)

    def _inode(self, number: int) -> Any:
        """A new object for an inode: the library keeps state in them."""
        if not 0 < number < self._fs.sb.s_inodes_count:
            raise DamagedError(f"no such inode: {number}")
        return INode(self._fs, number)

    def _target(self, link: Any) -> str:
        if link.size > MOST_LINK:
            raise DamagedError(f"a link of {link.size} bytes")
        self._refuse_encrypted(link)
        target: str = link.link
        return target

    def _refuse_encrypted(self, held: Any) -> None:
        if held.inode.i_flags & c_ext.EXT4_ENCRYPT_FL:
            raise UnsupportedError("it is encrypted")
