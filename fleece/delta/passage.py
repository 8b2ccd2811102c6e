"""Carry a delta from one store to another: each byte is read once, and checked while it passes.

Under the same key the file's bytes are carried as they are. Under another one its frames are sealed
anew: nothing is compressed or hashed again but the pages and the footer that say where frames are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from fleece.delta import footer, pages
from fleece.delta.blob import Blob
from fleece.delta.check import Placed, Seen, Walk
from fleece.delta.layout import Kind, Tag, own_hash, unseal
from fleece.delta.protection import KEY_FRAME_SIZE, Protection, begin
from fleece.delta.reader import DeltaReader
from fleece.delta.sink import Appender, Sink
from fleece.errors import DeltaError
from fleece.tree import NodeSource

_PIECE = 4 << 20
"""Bytes that are read at once."""


class ReadAhead:
    """A blob that is read front to back in large pieces (`fleece.delta.blob.Blob`), by one thread.

    Args:
        blob: is closed with this.
        took: is called with the number of bytes of each piece before it is read.
    """

    def __init__(self, blob: Blob, took: Callable[[int], None]) -> None:
        self.name, self.length = blob.name, blob.length
        self._blob = blob
        self._took = took
        self._start: int | None = None
        self._held = b""

    def follow(self, position: int) -> None:
        """From now on it is read from this position on. Until then, reads are as they come."""
        self._start, self._held = position, b""

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes; those before `position` are not wanted again."""
        if self._start is None or not self._start <= position <= self._start + len(self._held):
            return self._blob.read_at(position, length)
        end = self._start + len(self._held)
        if position + length > end:
            more = min(max(_PIECE, position + length - end), max(0, self.length - end))
            self._took(more)
            read = self._blob.read_at(end, max(more, position + length - end))
            self._held = self._held[position - self._start :] + read
            self._start = position
        at = position - self._start
        return self._held[at : at + length]

    def data_from(self, position: int) -> int:
        """As the blob's."""
        return self._blob.data_from(position)

    def close(self) -> None:
        """Close the blob."""
        self._blob.close()


@dataclass(frozen=True)
class Carried:
    """A delta that was carried, but for what only its place can show: that it builds on its parent.

    Attributes:
        seen: its records, as they are in the new file.
        end: where they end in it.
        last_record: own hash of the last one; of the header if there is none.
    """

    seen: Seen
    end: int
    last_record: bytes

    def check(self, arrived: DeltaReader, base: NodeSource) -> None:
        """Check the new file, opened where it has arrived, against what passed and its parent.

        Args:
            arrived: the new file; its pages are read, its records are not.
            base: the disk at the parent.

        Raises:
            DeltaError: it is not what passed, or the root does not follow from it.
        """
        if arrived.footer.last_record != self.last_record:
            raise DeltaError("is not the delta that was sent", where=arrived.where)
        self.seen.check(arrived, self.end, base)


def carry(
    delta: DeltaReader,
    blob: ReadAhead,
    sink: Sink,
    protection: Protection | None,
) -> Carried:
    """Write a delta into another place; the caller makes it durable.

    Args:
        delta: open.
        blob: what it was opened out of.
        sink: takes the new file.
        protection: of the new file. If it is another one, hashes must not be keyed.

    Raises:
        DeltaError: a byte is not what the delta's own hashes say; the new file is worth nothing.
    """
    if protection == delta.protection:
        return _as_it_is(delta, blob, sink)
    return _sealed_anew(delta, blob, sink, protection)


def _as_it_is(delta: DeltaReader, blob: ReadAhead, sink: Sink) -> Carried:
    walk = Walk(delta)
    out = Appender(sink, delta.frames)
    blob.follow(0)
    out.store(delta.read_at(0, delta.records_start))
    unpack = zstandard.ZstdDecompressor()
    for item in walk:
        out.store(_checked(delta, item, unpack)[0])
    for page in delta.pages:
        out.store(_page(delta, page, out.position)[0])
    out.store(delta.read_at(out.position, delta.length - out.position))
    return Carried(walk.seen, walk.end, delta.footer.last_record)


def _sealed_anew(
    delta: DeltaReader, blob: ReadAhead, sink: Sink, protection: Protection | None
) -> Carried:
    walk = Walk(delta, keep_leaves=False)
    first, frames = begin(protection)
    out = Appender(sink, frames)
    blob.follow(0)
    out.store(first)
    out.frame(Tag.HEADER, _header(delta))
    seen = Seen(delta.geometry)
    unpack = zstandard.ZstdDecompressor()
    for item in walk:
        frame = _checked(delta, item, unpack)[1]
        seen.note(item.record, out.position)
        out.frame(Tag.RECORD, item.packed)
        if item.record.kind is Kind.DATA:
            out.frame(Tag.DATA, frame)
    end = out.position
    _close(delta, walk.end, seen, out)
    return Carried(seen, end, delta.footer.last_record)


def _close(delta: DeltaReader, position: int, seen: Seen, out: Appender) -> None:
    """Write the tree as it is, and index, directory and footer by the frames' new positions."""
    listed: list[pages.Page] = []

    def place(page: pages.Page, frame: bytes) -> None:
        listed.append(dataclasses.replace(page, position=out.position))
        out.frame(page.tag, frame)

    for page in delta.pages:
        stored, frame = _page(delta, page, position)
        position += len(stored)
        if page.tag is Tag.TREE:
            place(page, frame)
    for frame, page in pages.index_pages(seen.rows.parts(), delta.geometry):
        place(page, frame)
    algorithm = delta.geometry.algorithm
    directory = pages.pack_directory(listed, delta.geometry)
    last = dataclasses.replace(
        delta.footer,
        directory_position=out.position,
        directory_length=len(directory),
        directory_hash=own_hash(directory, algorithm),
    )
    out.frame(Tag.DIRECTORY, directory)
    out.frame(Tag.FOOTER, footer.pack(last, algorithm))


def _header(delta: DeltaReader) -> bytes:
    """The HEADER frame's own bytes: names that this version does not know stay in it."""
    start = 0 if delta.protection is None else KEY_FRAME_SIZE
    return delta.frame(Tag.HEADER, start, delta.records_start - start - delta.frames.overhead)


def _checked(
    delta: DeltaReader, item: Placed, unpack: zstandard.ZstdDecompressor
) -> tuple[bytes, bytes]:
    """Both frames of a record as they are stored, and its zstd frame, decoded once and compared."""
    data = item.record.kind is Kind.DATA
    length = item.record.frame_length + delta.frames.overhead if data else 0
    stored = delta.read_at(item.position, item.frame_position - item.position + length)
    if not data:
        return stored, b""
    kept = stored[item.frame_position - item.position :]
    frame = delta.frames.open(Tag.DATA, kept, delta.where)
    delta.check_frame(item.record, frame)
    delta.unpack(item.record, frame, unpack)
    return stored, frame


def _page(delta: DeltaReader, page: pages.Page, position: int) -> tuple[bytes, bytes]:
    """A page that must be at a position: as it is stored, and as it is unsealed."""
    if page.position != position:
        raise DeltaError("bytes between the pages", where=delta.where)
    stored = delta.read_at(position, page.length + delta.frames.overhead)
    frame = delta.frames.open(page.tag, stored, delta.where)
    unseal(frame, page.tag, delta.geometry.algorithm, delta.where)
    if own_hash(frame, delta.geometry.algorithm) != page.hash:
        raise DeltaError(f"a {page.tag.name} page does not match the directory", where=delta.where)
    return stored, frame
