"""Write one delta in one pass, without seeking: the sink can be a file or a pipe."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece.delta import footer, header, pages, record
from fleece.delta.layout import MAX_RECORD, Kind, Tag, own_hash
from fleece.delta.partial import Proven
from fleece.delta.protection import Protection, begin
from fleece.delta.sink import Appender, Sink
from fleece.delta.spool import HashSpool, RowSpool
from fleece.errors import DeltaError, UsageError
from fleece.extents import Extents, Gathering
from fleece.hashing import Buffer
from fleece.tree import Growing, HashArray, LeafHasher, NodeSource, Run, changed_runs, seen_as


@dataclass(frozen=True)
class Summary:
    """What a finished delta holds.

    Attributes:
        root: the root of the disk at the point.
        data_bytes, zero_bytes: bytes of disk in data and in zero records.
        stored_bytes: the whole file's length.
    """

    root: bytes
    data_bytes: int
    zero_bytes: int
    stored_bytes: int


class DeltaWriter:
    """Takes runs of leaves from any number of threads; appends them in the order they come.

    Zero ranges are gathered and written, joined, by `finish`. A writer that is not finished leaves
    a partial delta, which no reader takes for a whole one, and behind whose proven records another
    writer can go on.

    Args:
        sink: where the bytes go.
        head: the delta's header; written at once.
        base: the disk at the parent, or `fleece.tree.BlankDisk` if there is none. If its size is
            another one, the delta must hold all from `head.covers_from` on.
        protection: by a key; the header's algorithm must be keyed if it says so.
        proven: what the sink holds already, header included, and no byte more; `head` is its, and
            so is the protection.

    Attributes:
        geometry: of the disk's tree.
    """

    def __init__(
        self,
        sink: Sink,
        head: header.Header,
        base: NodeSource,
        protection: Protection | None = None,
        proven: Proven | None = None,
    ) -> None:
        self._head = head
        self.geometry = head.geometry
        self._base = seen_as(base, head.geometry)
        self._lock = threading.Lock()
        self._rows = RowSpool(self.geometry.leaf_size)
        self._leaves = HashSpool(self.geometry.algorithm.size)
        self._zeros = Gathering()
        self._stored_zeros = Extents.empty()
        self._data_bytes = self._frame_bytes = 0
        if head.algorithm.keyed != (protection is not None and protection.keyed):
            raise UsageError("keyed hashes and a key go together", where=head.disk)
        if proven is None:
            frame = header.pack(head)
            self._header_hash = self._last = own_hash(frame, self.geometry.algorithm)
            key_frame, frames = begin(protection)
            self._out = Appender(sink, frames)
            self._out.store(key_frame + self._out.seal(Tag.HEADER, frame))
        else:
            self._out = Appender(sink, proven.frames, proven.end)
            self._go_on(proven)

    def _go_on(self, proven: Proven) -> None:
        self._header_hash, self._last = proven.header_hash, proven.last_record
        self._rows, self._leaves = proven.rows, proven.leaves
        self._stored_zeros = proven.zeros
        self._data_bytes, self._frame_bytes = proven.data.total, proven.frame_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes written so far."""
        return self._out.position

    def compressor(self) -> zstandard.ZstdCompressor:
        """Makes the zstd frames of its records; for one thread."""
        return zstandard.ZstdCompressor(
            level=self._head.level, write_checksum=True, write_content_size=True
        )

    def data(self, offset: int, length: int, leaves: bytes, frame: bytes) -> None:
        """Append a data record: `length` bytes of disk, their leaf hashes, their zstd frame."""
        digest = self.geometry.algorithm.digest(frame)
        stored = self._out.seal(Tag.DATA, frame)
        with self._lock:
            self._record(Kind.DATA, offset, length, leaves, len(frame), digest)
            self._out.store(stored)
            self._leaves.add_run(offset // self.geometry.leaf_size, leaves)
            self._data_bytes += length
            self._frame_bytes += len(frame)

    def zero(self, offset: int, length: int) -> None:
        """Note that a range of whole leaves (or up to the disk's end) reads as zeros."""
        with self._lock:
            self._zeros.add(offset, offset + length)

    def finish(self) -> Summary:
        """Write zero records, tree, index, directory and footer. The caller makes them durable."""
        with self._lock:
            zeros = self._zeros.extents()
            nothing = bytes(self.geometry.algorithm.size)
            for start, end in zeros:
                self._record(Kind.ZERO, start, end - start, b"", 0, nothing)
            return self._close(zeros.union(self._stored_zeros))

    def _close(self, zeros: Extents) -> Summary:
        geometry = self.geometry
        spans = Extents(zeros.start // geometry.leaf_size, -(-zeros.end // geometry.leaf_size))
        spool = functools.partial(HashSpool, geometry.algorithm.size)
        tree = Growing(geometry, self._leaves, spans, self._base, spool)
        listed = []
        for frame, page in itertools.chain(
            pages.tree_pages(tree.levels(), geometry),
            pages.index_pages(self._disjoint_rows(), geometry),
        ):
            listed.append(dataclasses.replace(page, position=self._out.position))
            self._out.frame(page.tag, frame)
        self._end(pages.pack_directory(listed, geometry), zeros.total, tree.top, tree.root)
        return Summary(tree.root, self._data_bytes, zeros.total, self._out.position)

    def _disjoint_rows(self) -> Iterator[pages.IndexRows]:
        before = 0
        for rows in self._rows.parts():
            end = rows["offset"] + rows["length"]
            if int(rows["offset"][0]) < before or np.any(rows["offset"][1:] < end[:-1]):
                raise DeltaError("a range of the disk was written twice", where=self._head.disk)
            before = int(end[-1])
            yield rows

    def _end(self, directory: bytes, zero: int, top: bytes, root: bytes) -> None:
        algorithm = self.geometry.algorithm
        last = footer.Footer(
            file_id=self._head.file_id,
            directory_position=self._out.position,
            directory_length=len(directory),
            records=len(self._rows),
            data_bytes=self._data_bytes,
            zero_bytes=zero,
            frame_bytes=self._frame_bytes,
            header_hash=self._header_hash,
            last_record=self._last,
            directory_hash=own_hash(directory, algorithm),
            top=top,
            root=root,
        )
        self._out.frame(Tag.DIRECTORY, directory)
        self._out.frame(Tag.FOOTER, footer.pack(last, algorithm))

    def _record(
        self, kind: Kind, offset: int, length: int, leaves: bytes, frame_length: int, digest: bytes
    ) -> None:
        """Append one record without its zstd frame; the lock is held."""
        position = self._out.position
        packed = record.pack(
            record.Record(
                kind,
                self._head.file_id,
                len(self._rows),
                offset,
                length,
                frame_length,
                self._last,
                digest,
                leaves,
            ),
            self.geometry,
        )
        self._out.frame(Tag.RECORD, packed)
        self._last = own_hash(packed, self.geometry.algorithm)
        self._rows.add(offset, length, position, frame_length, kind)


class Packer:
    """One thread's way into a delta: hashes leaves, tells zeros apart, compresses, appends.

    Args:
        writer: of the disk's delta.
        stored: is told each range of data, in bytes of disk, that was appended.
    """

    def __init__(
        self, writer: DeltaWriter, stored: Callable[[int, int], None] | None = None
    ) -> None:
        self._writer = writer
        self._stored = stored
        self._geometry = writer.geometry
        self._hasher = LeafHasher(writer.geometry)
        self._compressor = writer.compressor()

    def store(self, offset: int, data: Buffer, held: HashArray | None = None) -> None:
        """Store whole leaves.

        Args:
            offset: of the disk, at a leaf.
            data: up to a leaf's or the disk's end; cut into records at each `MAX_RECORD` of the
                disk.
            held: the chain's hashes of the same leaves: those that are the same are not stored.
        """
        view, at = memoryview(data), 0
        while at < len(view):
            end = min(len(view), at + MAX_RECORD - (offset + at) % MAX_RECORD)
            same = None if held is None else held[at // self._geometry.leaf_size :]
            self._store(offset + at, view[at:end], same)
            at = end

    def _store(self, offset: int, view: memoryview, held: HashArray | None) -> None:
        for run in self._wanted(offset, self._hasher.runs(offset, view), held):
            if run.hashes is None:
                self._writer.zero(run.offset, run.length)
            else:
                at = run.offset - offset
                frame = self._compressor.compress(view[at : at + run.length])
                self._writer.data(run.offset, run.length, run.hashes, frame)
                if self._stored is not None:
                    self._stored(run.offset, run.offset + run.length)

    def _wanted(self, offset: int, runs: Iterator[Run], held: HashArray | None) -> Iterator[Run]:
        if held is None:
            yield from runs
            return
        size = self._geometry.leaf_size
        for run in runs:
            first = (run.offset - offset) // size
            count = -(-run.length // size)
            yield from changed_runs(run, held[first : first + count], self._geometry)
