"""Read one delta, as a hostile file: every length is bounded before it is believed.

Opening reads the header, the footer and the directory. Pages and records are read when they are
needed, each checked against a hash that leads back to the footer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import zstandard

from fleece.closing import Closing
from fleece.delta import footer, header, pages, protection, record
from fleece.delta.blob import Blob, ReadsAhead, RemembersPages
from fleece.delta.layout import (
    ENVELOPE,
    INDEX_ROW,
    MAX_HEADER,
    MAX_RECORD,
    MAX_RECORD_FRAME,
    Kind,
    Tag,
    own_hash,
)
from fleece.delta.pagecache import page_cache
from fleece.errors import DeltaError
from fleece.extents import Extents, Flags, Int64Array
from fleece.keys import Secret, need_key
from fleece.ordered import distinct
from fleece.tree import Geometry, HashArray, Level, leaf_hashes


class RecordFile(Closing):
    """A file that begins with a delta's header, open for reading its records, whatever follows.

    Args:
        blob: the file; only its bytes are believed, never its name. It is closed with this.
        secret: what it is protected by; None: nothing.

    Attributes:
        where: the file's name, for messages.
        header: what it says.
        protection: by a key; None: by none.
        frames: how frames are stored.
        records_start: position of the first record in the file, in bytes.
        length: of the file, in bytes.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
        WrongKey: it is protected by another key.
    """

    def __init__(self, blob: Blob, secret: Secret | None = None) -> None:
        self._blob = blob
        self.where = blob.name
        self.length = blob.length
        try:
            first = self.read_at(0, min(ENVELOPE.size, self.length))
            start, self.protection, self.frames = self._read_key(first, secret)
            self.header, self._header_hash, self.records_start = self._read_header(first, start)
        except BaseException:
            blob.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._blob.close()

    @property
    def geometry(self) -> Geometry:
        """The shape of the disk's tree at this point."""
        return self._geometry

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes of the file.

        Raises:
            DeltaError: the file ends before, or cannot be read.
        """
        return self._blob.read_at(position, length)

    def frame(self, tag: Tag, position: int, length: int) -> bytes:
        """The frame of `length` bytes, as it is unsealed, that is stored at a position.

        Raises:
            DeltaError: the file ends before, cannot be read, or the frame was altered.
        """
        stored = self.read_at(position, length + self.frames.overhead)
        return self.frames.open(tag, stored, self.where)

    def next_frame(self, tag: Tag, position: int, most: int, end: int) -> bytes:
        """The frame that is stored at a position, as long as it says itself.

        Args:
            tag: what it must be.
            position: in the file.
            most: bytes that such a frame can have.
            end: of what it may lie in.

        Raises:
            DeltaError: there is none.
        """
        start = self.read_at(position, max(0, min(1024, end - position)))
        if len(start) < ENVELOPE.size:
            raise DeltaError(f"cut inside a {tag.name} frame", where=self.where)
        length = ENVELOPE.unpack_from(start)[1] + 8
        if length > most + self.frames.overhead or position + length > end:
            raise DeltaError(
                f"no {tag.name} frame where one must be (byte {position})", where=self.where
            )
        stored = start[:length] if length <= len(start) else self.read_at(position, length)
        return self.frames.open(tag, stored, self.where)

    def record_frame(self, position: int, end: int) -> bytes:
        """The RECORD frame that is stored at a position, before `end`."""
        return self.next_frame(Tag.RECORD, position, MAX_RECORD_FRAME, end)

    def _read_key(
        self, first: bytes, secret: Secret | None
    ) -> tuple[int, protection.Protection | None, protection.Frames]:
        """Where the header is, and how the file is protected."""
        if not protection.is_key_frame(first):
            return 0, None, protection.BareFrames()
        size = protection.KEY_FRAME_SIZE
        described = protection.parse(self.read_at(0, min(size, self.length)), self.where)
        if secret is None:
            raise need_key(self.where)
        return size, *described.protected_by(secret.key(described.terms, self.where))

    @property
    def _hash_key(self) -> bytes | None:
        used = self.protection is not None and self.protection.keyed
        return self.protection.key.of_hashes if self.protection is not None and used else None

    def _read_header(self, first: bytes, start: int) -> tuple[header.Header, bytes, int]:
        if self.protection is None:
            header.frame_length(first, self.where)
        frame = self.next_frame(Tag.HEADER, start, MAX_HEADER, self.length)
        parsed = header.parse(frame, self.where, self._hash_key)
        self._geometry = parsed.geometry
        own = own_hash(frame, self._geometry.algorithm)
        return parsed, own, start + len(frame) + self.frames.overhead

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
        stored = size + self.frames.overhead
        data = frame_length + self.frames.overhead if kind == Kind.DATA else 0
        if size == 0 or position + stored + data > self.length:
            raise DeltaError("the index points outside the file", where=self.where)
        both = self.read_at(position, stored + data)
        packed = self.frames.open(Tag.RECORD, both[:stored], self.where)
        found = record.parse(packed, self._geometry, self.where)
        frame = self.frames.open(Tag.DATA, both[stored:], self.where) if data else b""
        said = (offset, length, frame_length, kind, self.header.file_id)
        if said != (found.offset, found.length, found.frame_length, found.kind, found.file_id):
            raise DeltaError("a record is not what the index says", where=self.where)
        self.check_frame(found, frame)
        return found, frame

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
        return DeltaError(f"{what} (disk {self.header.disk}, byte {offset})", where=self.where)


class DeltaReader(RecordFile):
    """A finished delta, open for random access from any number of threads.

    Args:
        blob: the file; only its bytes are believed, never its name. It is closed with this.
        secret: what it is protected by; None: nothing.

    Attributes:
        footer: what it says.
        pages: the directory's rows.
        cache: keeps pages; may be replaced by one that other files use too.

    Raises:
        DeltaError: damaged, incomplete, salvaged, or not a delta.
        WrongKey: it is protected by another key.
    """

    def __init__(self, blob: Blob, secret: Secret | None = None) -> None:
        super().__init__(blob, secret)
        try:
            if self.header.salvaged is not None:
                raise DeltaError(
                    "salvaged: it holds only what was left of a damaged delta",
                    where=self.where,
                    hint="'fleece restore --partial' uses it",
                )
            self.footer = self._read_footer()
            self.pages = self._read_directory()
        except BaseException:
            blob.close()
            raise
        self.cache = page_cache()
        self._key = object()
        self._offered = False

    def _read_footer(self) -> footer.Footer:
        algorithm = self._geometry.algorithm
        size = footer.size_of(algorithm)
        self.footer_position = self.length - size - self.frames.overhead
        if self.footer_position < self.records_start:
            raise self._incomplete()
        stored = self.read_at(self.footer_position, size + self.frames.overhead)
        if not self.frames.is_frame(Tag.FOOTER, stored[: ENVELOPE.size]):
            raise self._incomplete()
        frame = self.frames.open(Tag.FOOTER, stored, self.where)
        last = footer.parse(frame, algorithm, self.where)
        if last.header_hash != self._header_hash or last.file_id != self.header.file_id:
            raise DeltaError("header and footer are of different files", where=self.where)
        if self._geometry.root(last.top) != last.root:
            raise DeltaError("the root does not follow from the top node", where=self.where)
        return last

    def _incomplete(self) -> DeltaError:
        return DeltaError(
            "incomplete or cut: it does not end with a footer",
            where=self.where,
            hint="a backup that did not finish, or a damaged file",
        )

    def _read_directory(self) -> list[pages.Page]:
        last = self.footer
        end = last.directory_position + last.directory_length + self.frames.overhead
        if end != self.footer_position:
            raise DeltaError("the directory is not where it must be", where=self.where)
        frame = self.frame(Tag.DIRECTORY, last.directory_position, last.directory_length)
        if own_hash(frame, self._geometry.algorithm) != last.directory_hash:
            raise DeltaError("the directory does not match the footer", where=self.where)
        return pages.parse_directory(frame, self._geometry, last.directory_position, self.where)

    def _page(self, page: pages.Page) -> Level | pages.IndexRows:
        return self.cache.get((self._key, page.position), lambda: self._loaded(page))

    def in_order(self) -> None:
        """Tell the file that all its records are read next, should it read ahead."""
        if isinstance(self._blob, ReadsAhead):
            self._blob.in_order(self.records_start)

    def offer_pages(self) -> None:
        """Tell the file where its pages are, should it remember such; the first look does, too."""
        self._offered = True
        if isinstance(self._blob, RemembersPages):
            extra = self.frames.overhead
            self._blob.pages_at([(page.position, page.length + extra) for page in self.pages])

    def _loaded(self, page: pages.Page) -> Level | pages.IndexRows:
        """A page; if what is remembered of it is wrong, by itself."""
        if not self._offered:
            self.offer_pages()
        try:
            return self._load(page)
        except DeltaError:
            blob = self._blob
            if not isinstance(blob, RemembersPages) or not blob.forget_pages():
                raise
            return self._load(page)

    def _load(self, page: pages.Page) -> Level | pages.IndexRows:
        frame = self.frame(page.tag, page.position, page.length)
        if page.tag is Tag.TREE:
            return pages.parse_tree(frame, page, self._geometry, self.where)
        return pages.parse_index(frame, page, self._geometry, self.where)

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
                rows = self._index_page(page)
                if page.first < end:
                    raise DeltaError("the index has ranges that overlap", where=self.where)
                end = int(rows["offset"][-1]) + int(rows["length"][-1])
                yield rows

    def rows(self) -> pages.IndexRows:
        """The whole index as one array."""
        parts = list(self.index())
        return np.concatenate(parts) if parts else np.empty(0, INDEX_ROW)

    @functools.cached_property
    def _index_table(self) -> pages.PageTable:
        listed = [page for page in self.pages if page.tag is Tag.INDEX]
        return pages.PageTable(listed, self.where)

    @functools.cached_property
    def _tree_tables(self) -> dict[int, pages.PageTable]:
        levels: dict[int, list[pages.Page]] = {}
        for page in self.pages:
            if page.tag is Tag.TREE:
                levels.setdefault(page.level, []).append(page)
        return {level: pages.PageTable(listed, self.where) for level, listed in levels.items()}

    def _index_page(self, page: pages.Page) -> pages.IndexRows:
        rows = self._page(page)
        assert isinstance(rows, np.ndarray)
        return rows

    def rows_within(self, start: int, end: int) -> pages.IndexRows:
        """The index rows that overlap `[start, end)`, reading only the pages that hold them.

        Raises:
            DeltaError: a page is damaged, or two of them overlap.
        """
        parts = []
        before = 0
        for page in self._index_table.reaching(start, end):
            rows = self._index_page(page)
            if page.first < before:
                raise DeltaError("the index has ranges that overlap", where=self.where)
            before = int(rows["offset"][-1]) + int(rows["length"][-1])
            low = int(np.searchsorted(rows["offset"], np.uint64(start), side="right"))
            if low > 0 and int(rows["offset"][low - 1]) + int(rows["length"][low - 1]) > start:
                low -= 1
            part = rows[low : np.searchsorted(rows["offset"], np.uint64(end), side="left")]
            if len(part):
                parts.append(part)
        if not parts:
            return np.empty(0, INDEX_ROW)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def is_zeroed(self, at: Int64Array) -> Flags:
        """bool[n]: which byte offsets of the disk (ascending) lie in zero records."""
        flags = np.zeros(len(at), np.bool_)
        table = self._index_table
        numbers = table.below(at)
        for number in distinct(numbers[numbers >= 0]).tolist():
            mine = np.flatnonzero(numbers == number)
            rows = self._index_page(table.pages[number])
            wanted = at[mine].astype(np.uint64)
            row = rows[np.searchsorted(rows["offset"], wanted, side="right") - 1]
            flags[mine] = (row["kind"] == Kind.ZERO) & (wanted < row["offset"] + row["length"])
        return flags

    @functools.cached_property
    def zero_leaves(self) -> Extents:
        """The ranges that the delta says are zeros, in leaf numbers."""
        zeros = self.extents(Kind.ZERO)
        size = self._geometry.leaf_size
        return Extents(zeros.start // size, -(-zeros.end // size))

    def extents(self, kind: Kind | None = None) -> Extents:
        """The ranges of the disk that the delta holds, of one kind or of both."""
        parts = []
        for rows in self.index():
            mine = rows if kind is None else rows[rows["kind"] == kind]
            start = mine["offset"].astype(np.int64)
            parts.append(Extents.normal(start, start + mine["length"].astype(np.int64)))
        return Extents.joined(parts)

    def nodes(self, level: int, wanted: Int64Array) -> tuple[Int64Array, HashArray]:
        """The tree nodes of `level` that this delta holds, among those wanted (ascending).

        Returns:
            (rows, children): int64[m] positions in `wanted`, uint8[m, fan-out, hash size].
        """
        found, children = [], []
        table = self._tree_tables.get(level)
        near = (
            table.spanning(int(wanted[0]), int(wanted[-1]) + 1)
            if table is not None and len(wanted)
            else ()
        )
        for page in near:
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
