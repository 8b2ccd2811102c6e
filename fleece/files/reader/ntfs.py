"""NTFS, by dissect.ntfs; what that gets wrong is put right or refused here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from dissect.ntfs import NTFS
from dissect.ntfs.c_ntfs import (
    ATTRIBUTE_FLAG_COMPRESSION_MASK,
    ATTRIBUTE_FLAG_ENCRYPTED,
    ATTRIBUTE_TYPE_CODE,
)
from dissect.ntfs.util import segment_reference

from fleece.files.model import FileKind
from fleece.files.reader.tree import (
    MOST_LINK,
    DamagedError,
    Node,
    Piece,
    UnsupportedError,
    read_runs,
    read_stream,
    runs_of,
)

_ROOT = 5
_FIRST_OF_USERS = 24
"""The first records are the file system's own: $MFT and the like (ntfs.h of Linux)."""

_IN_USE = 1


class NtfsTree:
    """One NTFS. It has no modes and no owners that mean anything elsewhere.

    Args:
        volume: to read.
        size: of it in bytes.
    """

    def __init__(self, volume: BinaryIO, size: int) -> None:
        self._volume = volume
        self._size = size
        self._fs = NTFS(volume)
        self.root = _ROOT
        self.label: str = self._fs.volume_name or ""
        self.type = "ntfs"
        self.folds_case = True
        self.warnings: list[str] = []

    def node(self, number: int) -> Node:
        """What a record is."""
        record = self._record(number)
        written = record.attributes.STANDARD_INFORMATION.last_modification_time_ns
        if record.is_symlink() or record.is_mount_point():
            target = self._target(record)
            return Node(number, FileKind.LINK, len(target), mtime=written, target=target)
        if record.is_dir():
            return Node(number, FileKind.FOLDER, 0, mtime=written)
        size = record.size() if record.has_stream() else 0
        return Node(number, FileKind.FILE, size, mtime=written)

    def children(self, number: int) -> Iterator[tuple[str, int]]:
        """A folder's names; those that only DOS needs are left out."""
        record = self._record(number)
        self._check_index(record)
        for entry in record.iterdir(ignore_dos=True):
            reference = entry.header.FileReference
            child, name = segment_reference(reference), entry.attribute.file_name
            # The library shows what is left in index blocks that are no longer used, too.
            if child >= _FIRST_OF_USERS and self._holds(number, name, child, reference):
                yield name, child

    def _check_index(self, record: Any) -> None:
        """Refuse a folder whose index is larger than its volume: it would be read for days."""
        index = record.attributes.find("$I30", ATTRIBUTE_TYPE_CODE.INDEX_ALLOCATION)
        if index and index.size() > self._size:
            raise DamagedError(f"a folder of {index.size()} bytes")

    def _holds(self, folder: int, name: str, child: int, reference: Any) -> bool:
        """Whether a record says that it has this name in this folder."""
        record = self._fs.mft.get(child)
        in_use = record.header.Flags & _IN_USE
        if not in_use or record.header.SequenceNumber != reference.SequenceNumber:
            return False
        return any(
            given.file_name == name and segment_reference(given.attr.ParentDirectory) == folder
            for given in record.attributes[ATTRIBUTE_TYPE_CODE.FILE_NAME]
        )

    def pieces(self, number: int) -> Iterator[Piece]:
        """A file's data: of its nameless stream."""
        record = self._record(number)
        if record.is_reparse_point():
            tag = int(record.attributes.REPARSE_POINT.tag)
            raise UnsupportedError(f"its data is kept elsewhere (reparse point {tag:#x})")
        if not record.has_stream():
            return
        streams = record.attributes.find("", ATTRIBUTE_TYPE_CODE.DATA)
        if streams.header.resident:
            yield from read_stream(streams.open(), streams.size(), self._size)
            return
        first = min(streams, key=lambda stream: int(stream.header.lowest_vcn)).header
        if first.flags & ATTRIBUTE_FLAG_ENCRYPTED:
            raise UnsupportedError("it is encrypted")
        if first.flags & ATTRIBUTE_FLAG_COMPRESSION_MASK:
            yield from read_stream(streams.open(), first.size, self._size)
            return
        # Behind the valid length a file reads as zeros; the library shows what is on the disk.
        valid = min(int(first.header.Form.Nonresident.ValidDataLength), int(first.size))
        runs = runs_of(streams.dataruns(), self._fs.cluster_size)
        yield from read_runs(self._volume, runs, valid, self._size)

    def _record(self, number: int) -> Any:
        record = self._fs.mft.get(number)
        if not record.header.Flags & _IN_USE:
            raise DamagedError(f"record {number} is not in use")
        return record

    def _target(self, record: Any) -> str:
        """Where a link or junction points to, with slashes."""
        name = record.reparse_point_name or record.reparse_point_substitute_name or ""
        if len(name) > MOST_LINK:
            raise DamagedError(f"a link of {len(name)} characters")
        return str(name).replace("\\", "/")
