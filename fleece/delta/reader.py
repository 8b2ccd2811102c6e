"""Read one delta, as a hostile file: every length is bounded before it is believed.

Opening reads the header, the footer and the directory. Pages and records are read when they are
needed, each checked against a hash that leads back to the footer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
import zstandard

from fleece.delta import footer, header, pages, record
from fleece.delta.layout import (
    ENVELOPE,
    INDEX_ROW,
    MAX_RECORD,
    SKIPPABLE_MAGIC,
    Kind,
    Tag,
    own_hash,
)
from fleece.errors import DeltaError
from fleece.extents import Extents, Int64Array
from fleece.tree import Geometry, HashArray, Level

_CACHED_PAGES = 8
_LONGEST_RECORD = 64 * 1024
_USUAL_RECORD = 1024
"""Bytes that hold nearly any RECORD frame: one read does."""


class RecordFile:
    """A file that begins with a delta's header, open for reading its records, whatever follows.

    Args:
        path: the file; only its bytes are believed, never its name.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise DeltaError(f"cannot be read ({error.strerror})", where=self.path) from error
        try:
            self.length = os.fstat(self._file.fileno()).st_size
            self.header, self._header_hash, self.records_start = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def geometry(self) -> Geometry:
        """The shape of the disk's tree at this point."""
        return self._geometry

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes of the file.

        Raises:
            DeltaError: the file ends before, or cannot be read.
        """
        parts: list[bytes] = []
        while length > 0:
            try:
                part = os.pread(self._file.fileno(), length, position)
            except OSError as error:
                raise DeltaError(f"cannot be read ({error.strerror})", where=self.path) from error
            if not part:
                raise DeltaError("the file is cut", where=self.path)
            parts.append(part)
            position, length = position + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_header(self) -> tuple[header.Header, bytes, int]:
        first = self.read_at(0, min(ENVELOPE.size, self.length))
        length = header.frame_length(first, self.path)
        frame = self.read_at(0, length)
        parsed = header.parse(frame, self.path)
        self._geometry = parsed.geometry
        return parsed, own_hash(frame, self._geometry.algorithm), length

    def record_at(
        self, offset: int, length: int, position: int, frame_length: int, kind: int
    ) -> tuple[record.Record, bytes]:
        """The record of one index row, and its zstd frame; both match the row and their hashes.

        Raises:
            DeltaError: they do not.
        """
        size = (
            record.size_of(Kind(kind), length, self._geometry)
            if length <= MAX_RECORD or (kind == Kind.ZERO)
            else 0
        )
        if size == 0 or position + size + frame_length > self.length:
            raise DeltaError("the index points outside the file", where=self.path)
        both = self.read_at(position, size + frame_length)
        found = record.parse(both[:size], self._geometry, self.path)
        frame = both[size:]
        said = (offset, length, frame_length, kind, self.header.file_id)
        if said != (found.offset, found.length, found.frame_length, found.kind, found.file_id):
            raise DeltaError("a record is not what the index says", where=self.path)
        self.check_frame(found, frame)
        return found, frame

    def record_frame(self, position: int, end: int) -> bytes:
        """The bytes of the RECORD frame that begins at `position`; nothing in them is checked yet.

        Args:
            position: in the file.
            end: where the records must have ended.

        Raises:
            DeltaError: no such frame is there.
        """
        start = self.read_at(position, min(_USUAL_RECORD, end - position))
        if len(start) < ENVELOPE.size:
            raise DeltaError("a record is cut", where=self.path)
        magic, rest, tag = ENVELOPE.unpack_from(start)
        length = rest + 8
        fits = length <= _LONGEST_RECORD and position + length <= end
        if magic != SKIPPABLE_MAGIC or tag != Tag.RECORD.value or not fits:
            raise DeltaError(f"no record where one must be (byte {position})", where=self.path)
        return start[:length] if length <= len(start) else self.read_at(position, length)

    def check_frame(self, found: record.Record, frame: bytes) -> None:
        """Check a zstd frame's bytes against its record.

        Raises:
            DeltaError: they differ.
        """
        if found.kind is Kind.DATA and self._geometry.algorithm.digest(frame) != found.frame_hash:
            raise self.damaged("compressed data does not match its hash", found.offset)

    def unpack(
        self, found: record.Record, frame: bytes, context: zstandard.ZstdDecompressor
    ) -> bytes:
        """The disk's bytes of a data record, each leaf checked against its hash.

        Args:
            found: the record.
            frame: its zstd frame.
            context: a decompressor of the calling thread's own.

        Raises:
            DeltaError: the frame does not decode to exactly the record's bytes.
        """
        try:
            if zstandard.get_frame_parameters(frame).content_size != found.length:
                raise self.damaged("compressed data announces the wrong size", found.offset)
            data = context.decompress(frame, max_output_size=found.length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self.damaged(
                f"compressed data does not decode ({error})", found.offset
            ) from error
        if len(data) != found.length:
            raise self.damaged("compressed data has the wrong size", found.offset)
        if leaf_hashes(data, self._geometry) != found.leaves:
            raise self.damaged("data does not match its leaf hashes", found.offset)
        return data

    def damaged(self, what: str, offset: int) -> DeltaError:
        """An error about the data at a byte offset of the disk."""
        return DeltaError(f"{what} (disk {self.header.disk}, byte {offset})", where=self.path)


class DeltaReader(RecordFile):
    """A finished delta, open for random access from any number of threads.

    Args:
        path: the file; only its bytes are believed, never its name.

    Raises:
        DeltaError: damaged, incomplete, or not a delta.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            self.footer = self._read_footer()
            self.pages = self._read_directory()
        except BaseException:
            self._file.close()
            raise
        self._page = functools.lru_cache(_CACHED_PAGES)(self._load)

    def _read_footer(self) -> footer.Footer:
        algorithm = self._geometry.algorithm
        size = footer.size_of(algorithm)
        self.footer_position = self.length - size
        incomplete = DeltaError(
            "incomplete or cut: it does not end with a footer",
            where=self.path,
            hint="a backup that did not finish, or a damaged file",
        )
        if self.footer_position < self.records_start:
            raise incomplete
        frame = self.read_at(self.footer_position, size)
        if frame[8:12] != Tag.FOOTER.value:
            raise incomplete
        last = footer.parse(frame, algorithm, self.path)
        if last.header_hash != self._header_hash or last.file_id != self.header.file_id:
            raise DeltaError("header and footer are of different files", where=self.path)
        if self._geometry.root(last.top) != last.root:
            raise DeltaError("the root does not follow from the top node", where=self.path)
        return last

    def _read_directory(self) -> list[pages.Page]:
        last = self.footer
        if last.directory_position + last.directory_length != self.footer_position:
            raise DeltaError("the directory is not where it must be", where=self.path)
        frame = self.read_at(last.directory_position, last.directory_length)
        if own_hash(frame, self._geometry.algorithm) != last.directory_hash:
            raise DeltaError("the directory does not match the footer", where=self.path)
        return pages.parse_directory(frame, self._geometry, last.directory_position, self.path)

    def _load(self, page: pages.Page) -> Level | pages.IndexRows:
        frame = self.read_at(page.position, page.length)
        if page.tag is Tag.TREE:
            return pages.parse_tree(frame, page, self._geometry, self.path)
        return pages.parse_index(frame, page, self._geometry, self.path)

    def tree_page(self, page: pages.Page) -> Level:
        """The nodes of a TREE page of the directory."""
        level = self._page(page)
        assert isinstance(level, Level)
        return level

    def index(self) -> Iterator[pages.IndexRows]:
        """The index, a page of rows at a time, by ascending offset on the disk.

        Raises:
            DeltaError: damaged, or its pages are out of order or overlap.
        """
        end = 0
        for page in self.pages:
            if page.tag is Tag.INDEX:
                rows = self._page(page)
                assert isinstance(rows, np.ndarray)
                if page.first < end:
                    raise DeltaError("the index has ranges that overlap", where=self.path)
                end = int(rows["offset"][-1]) + int(rows["length"][-1])
                yield rows

    def rows(self) -> pages.IndexRows:
        """The whole index as one array."""
        parts = list(self.index())
        return np.concatenate(parts) if parts else np.empty(0, INDEX_ROW)

    @functools.cached_property
    def zero_leaves(self) -> Extents:
        """The ranges that the delta says are zeros, in leaf numbers."""
        zeros = self.extents(Kind.ZERO)
        size = self._geometry.leaf_size
        return Extents(zeros.start // size, -(-zeros.end // size))

    def extents(self, kind: Kind | None = None) -> Extents:
        """The ranges of the disk that the delta holds, of one kind or of both."""
        rows = self.rows()
        if kind is not None:
            rows = rows[rows["kind"] == kind]
        start = rows["offset"].astype(np.int64)
        return Extents.normal(start, start + rows["length"].astype(np.int64))

    def nodes(self, level: int, wanted: Int64Array) -> tuple[Int64Array, HashArray]:
        """The tree nodes of `level` that this delta holds, among those wanted (ascending).

        Returns:
            (rows, children): int64[m] positions in `wanted`, uint8[m, fan-out, hash size].
        """
        found, children = [], []
        for page in self.pages:
            if page.tag is not Tag.TREE or page.level != level:
                continue
            low, high = np.searchsorted(wanted, (page.first, page.last + 1))
            if low == high:
                continue
            nodes = self.tree_page(page)
            at = np.searchsorted(nodes.nodes, wanted[low:high])
            at = np.minimum(at, len(nodes.nodes) - 1)
            hit = nodes.nodes[at] == wanted[low:high]
            found.append(np.flatnonzero(hit) + low)
            children.append(nodes.children[at[hit]])
        if not found:
            shape = (0, self._geometry.fan_out, self._geometry.algorithm.size)
            return np.empty(0, np.int64), np.empty(shape, np.uint8)
        return np.concatenate(found), np.concatenate(children)


def leaf_hashes(data: bytes | bytearray | memoryview, geometry: Geometry) -> bytes:
    """The hashes of consecutive leaves, joined; a short last leaf is padded with zeros."""
    size, digest = geometry.leaf_size, geometry.algorithm.digest
    view = memoryview(data)
    whole = len(view) // size * size
    hashes = [digest(view[at : at + size]) for at in range(0, whole, size)]
    if whole < len(view):
        hashes.append(digest(bytes(view[whole:]).ljust(size, b"\0")))
    return b"".join(hashes)
