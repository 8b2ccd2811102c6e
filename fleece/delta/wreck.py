"""Read what is left of a damaged delta: by its records, wherever they stand now.

A record proves itself: its own hash, the hash of its frame, the hashes of its leaves, and the
file's UUID. So each is found and proven alone. Index and tree are believed only where the file's
own footer still proves them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fleece.delta import footer, header, mend, pages, record
from fleece.delta.blob import Blob
from fleece.delta.layout import (
    ENVELOPE,
    INDEX_ROW,
    MAX_RECORD_FRAME,
    Kind,
    Tag,
    own_hash,
    unseal,
)
from fleece.delta.pagecache import page_cache
from fleece.delta.reader import RecordFile
from fleece.errors import DeltaError, UnreadableError
from fleece.extents import Extents, Int64Array
from fleece.hashing import ALGORITHMS, keyed_blake3
from fleece.keys import Secret
from fleece.tree import HashArray, Level

_WINDOW = 1 << 20
_BLOCK = 4096


@dataclass(frozen=True)
class Remnant:
    """A record whose own hash holds.

    Attributes:
        record: what it says.
        position: of its RECORD frame in the file, where it was found.
        frame: its zstd frame, which matches its hash; None: that is damaged. Empty for zeros.
    """

    record: record.Record
    position: int
    frame: bytes | None


class Wreck(RecordFile):
    """A delta in whatever state: whole, cut, damaged or salvaged. Only its header must be there.

    Of header and footer one bit each may be wrong.

    Attributes:
        footer: if it is there and of this file.
        listed: the pages that the footer's directory lists; None: that is not there or damaged.
        cache: keeps pages; may be replaced by one that other files use too.

    Raises:
        DeltaError: it cannot be read, or its header is damaged.
    """

    def __init__(self, blob: Blob, secret: Secret | None = None) -> None:
        self._unreadable: list[tuple[int, int]] = []
        super().__init__(blob, secret)
        try:
            self.footer = self._find_footer()
            self._shift = 0
            self.listed = self._find_directory()
        except BaseException:
            self.close()
            raise
        self.cache = page_cache()
        self._key = object()

    @property
    def unreadable(self) -> Extents:
        """What of the file could not be read so far, in bytes of the file."""
        return Extents.of(self._unreadable)

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes of the file; what the device cannot read counts as zeros.

        It is tried twice, and `unreadable` tells.
        """
        try:
            return super().read_at(position, length)
        except UnreadableError:
            if length <= _BLOCK:
                return self._once_more(position, length)
        ends = [*range(position + _BLOCK - position % _BLOCK, position + length, _BLOCK)]
        bounds = itertools.pairwise([position, *ends, position + length])
        return b"".join(self.read_at(start, end - start) for start, end in bounds)

    def _once_more(self, position: int, length: int) -> bytes:
        try:
            return super().read_at(position, length)
        except UnreadableError:
            self._unreadable.append((position, position + length))
            return bytes(length)

    def _read_header(self, first: bytes, start: int) -> tuple[header.Header, bytes, int]:
        try:
            return super()._read_header(first, start)
        except DeltaError as error:
            if self.frames.overhead == 0 and (mended := self._mended_header(start)) is not None:
                return mended
            if self._unreadable:
                error.what = f"cannot be read where its header is ({error.what})"
            error.hint = error.hint or "without a header nothing of it can be read"
            raise

    def _mended_header(self, start: int) -> tuple[header.Header, bytes, int] | None:
        """The header of a file that is not sealed: an altered sealed frame gives nothing back."""
        key = self._hash_key
        most = min(self.length - start, mend.LONGEST + ENVELOPE.size)
        found = self.read_at(start, max(0, most))
        length = mend.header_length(found) or 0
        for algorithm in ALGORITHMS if key is None else (keyed_blake3(key),):
            frame = mend.mended(found[:length], Tag.HEADER, algorithm)
            if frame is not None:
                parsed = header.parse(frame, self.where, key)
                self._geometry = parsed.geometry
                return parsed, own_hash(frame, algorithm), start + len(frame)
        return None

    @property
    def root(self) -> bytes | None:
        """The root of the disk at the point, if anything in the file still says it."""
        said = self.header.salvaged
        if said is not None:
            return None if said.root is None else bytes.fromhex(said.root)
        return None if self.footer is None else self.footer.root

    @property
    def top(self) -> bytes | None:
        """The hash of the disk's top node, known when `root` is."""
        said = self.header.salvaged
        if said is not None:
            return None if said.top is None else bytes.fromhex(said.top)
        return None if self.footer is None else self.footer.top

    def _find_footer(self) -> footer.Footer | None:
        algorithm = self._geometry.algorithm
        size = footer.size_of(algorithm)
        frame = self._frame(Tag.FOOTER, self.length - size - self.frames.overhead, size)
        if frame is None:
            return None
        try:
            found = footer.parse(
                mend.mended(frame, Tag.FOOTER, algorithm) or b"", algorithm, self.where
            )
        except DeltaError:
            return None
        if (found.header_hash, found.file_id) != (self._header_hash, self.header.file_id):
            return None
        whole = self.header.salvaged is None
        return None if whole and self._geometry.root(found.top) != found.root else found

    def _find_directory(self) -> tuple[pages.Page, ...] | None:
        """The directory stands right before the footer, even if bytes before it are gone."""
        if self.footer is None:
            return None
        overhead, length = self.frames.overhead, self.footer.directory_length
        end = self.length - footer.size_of(self._geometry.algorithm) - overhead
        position = end - length - overhead
        frame = self._frame(Tag.DIRECTORY, position, length)
        if frame is None or own_hash(frame, self._geometry.algorithm) != self.footer.directory_hash:
            return None
        try:
            listed = pages.parse_directory(
                frame, self._geometry, self.footer.directory_position, self.where
            )
        except DeltaError:
            return None
        self._shift = position - self.footer.directory_position
        return tuple(listed)

    def _frame(self, tag: Tag, position: int, length: int) -> bytes | None:
        """The frame that is stored at a position; None: it cannot be there, or was altered."""
        end = position + length + self.frames.overhead
        if position < self.records_start or end > self.length:
            return None
        try:
            return self.frame(tag, position, length)
        except DeltaError:
            return None

    def page_frame(self, page: pages.Page) -> bytes | None:
        """The frame of a page that the directory lists, proven; None: it is damaged."""
        frame = self._frame(page.tag, page.position + self._shift, page.length)
        if frame is None:
            return None
        try:
            unseal(frame, page.tag, self._geometry.algorithm, self.where)
        except DeltaError:
            return None
        return frame if own_hash(frame, self._geometry.algorithm) == page.hash else None

    def _index_rows(self, page: pages.Page) -> pages.IndexRows | None:
        frame = self.page_frame(page)
        kinds = pages.WHOLE if self.header.salvaged is None else tuple(Kind)
        if frame is None:
            return None
        try:
            return pages.parse_index(frame, page, self._geometry, self.where, kinds)
        except DeltaError:
            return None

    def index(self) -> tuple[pages.IndexRows, Extents]:
        """The rows that are left of the index, and where on the disk a row may be missing."""
        found, doubtful = [np.empty(0, INDEX_ROW)], []
        size = self._geometry.size
        if self.listed is None:
            return found[0], Extents.whole(size)
        index = [page for page in self.listed if page.tag is Tag.INDEX]
        for page, end in zip(index, [*(p.first for p in index[1:]), size], strict=False):
            rows = self._index_rows(page)
            if rows is None:
                doubtful.append((page.first, end))
            else:
                found.append(rows)
        return np.concatenate(found), Extents.of(doubtful)

    def _nodes_of(self, page: pages.Page) -> Level | None:
        """A TREE page; None: it is damaged."""
        found = self.cache.get((self._key, page.position), lambda: self._tree_page(page))
        assert isinstance(found, Level)
        return found if len(found.nodes) else None

    def _tree_page(self, page: pages.Page) -> Level:
        """The same; without nodes: it is damaged."""
        frame = self.page_frame(page)
        if frame is not None:
            with suppress(DeltaError):
                return pages.parse_tree(frame, page, self._geometry, self.where)
        shape = (0, self._geometry.fan_out, self._geometry.algorithm.size)
        return Level(page.level, np.empty(0, np.int64), np.empty(shape, np.uint8))

    def tree_pages(self) -> Iterator[tuple[pages.Page, bytes]]:
        """The TREE pages that are whole, with their frames."""
        for page in self.listed or ():
            if page.tag is Tag.TREE and self._nodes_of(page) is not None:
                frame = self.page_frame(page)
                if frame is not None:
                    yield page, frame

    def nodes(self, level: int, wanted: Int64Array) -> Iterator[tuple[Int64Array, HashArray]]:
        """The tree nodes of `level` that are left, among those wanted (ascending).

        Yields:
            (rows, children): int64[m] positions in `wanted`, uint8[m, fan-out, hash size].
        """
        for page in self.listed or ():
            if page.tag is not Tag.TREE or page.level != level:
                continue
            low, high = np.searchsorted(wanted, (page.first, page.last + 1))
            nodes = self._nodes_of(page) if low < high else None
            if nodes is not None:
                at = np.searchsorted(nodes.nodes, wanted[low:high])
                hit = nodes.nodes[at] == wanted[low:high]
                yield np.flatnonzero(hit) + low, nodes.children[at[hit]]

    def remnants(self, check: Callable[[], None] = lambda: None) -> Iterator[Remnant]:
        """Every record of this file whose own hash holds, in the order of the file.

        After a record whose frame is whole, the next one is looked for behind it; after any
        damage, at every byte. What a frame holds is never searched if the frame is whole, and a
        record with another file's UUID is none of this file's: a disk may hold deltas as its data.

        Args:
            check: called again and again while the next record is looked for, which may take
                hours; its error ends the search.
        """
        position, overhead = self.records_start, self.frames.overhead
        while (place := self._next(position, check)) is not None:
            position, packed, found = place
            frame: bytes | None = b""
            position += len(packed) + overhead
            if found.kind is Kind.DATA:
                frame = self._data(found, position)
            yield Remnant(found, place[0], frame)
            position += len(frame) + overhead if frame else 0

    def _data(self, found: record.Record, position: int) -> bytes | None:
        frame = self._frame(Tag.DATA, position, found.frame_length)
        try:
            self.check_frame(found, frame or b"")
        except DeltaError:
            return None
        return frame

    def _next(
        self, start: int, check: Callable[[], None]
    ) -> tuple[int, bytes, record.Record] | None:
        """The first RECORD frame of this file at or behind a position, and what it says."""
        found = self._record_from(start)
        if found is not None:
            return found
        for position in self._candidates(start, check):
            check()
            found = self._record_from(position)
            if found is not None:
                return found
        return None

    def _candidates(self, start: int, check: Callable[[], None]) -> Iterator[int]:
        """The places, from a position on, that look like the begin of a stored RECORD."""
        # A disk that failed is often copied with holes for what could not be read.
        while (start := self._blob.data_from(start)) + ENVELOPE.size <= self.length:
            check()
            window = self.read_at(start, min(_WINDOW, self.length - start))
            at = window.find(self.frames.magic)
            while at >= 0:
                if self.frames.is_frame(Tag.RECORD, window[at : at + ENVELOPE.size]):
                    yield start + at
                at = window.find(self.frames.magic, at + 1)
            start += max(1, len(window) - ENVELOPE.size + 1)

    def _record_from(self, position: int) -> tuple[int, bytes, record.Record] | None:
        """The RECORD frame at a position, if it is one of this file and its own hash holds."""
        first = self.read_at(position, max(0, min(ENVELOPE.size, self.length - position)))
        if len(first) < ENVELOPE.size or not self.frames.is_frame(Tag.RECORD, first):
            return None
        length = ENVELOPE.unpack_from(first)[1] + 8 - self.frames.overhead
        if not 0 < length <= MAX_RECORD_FRAME:
            return None
        packed = self._frame(Tag.RECORD, position, length)
        if packed is None:
            return None
        try:
            found = record.parse(packed, self._geometry, self.where)
        except DeltaError:
            return None
        return None if found.file_id != self.header.file_id else (position, packed, found)
