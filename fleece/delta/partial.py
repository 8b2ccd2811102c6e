"""A delta that was not finished: how much of it is proven, so that a writer can go on behind it."""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from fleece.delta import record
from fleece.delta.header import Header
from fleece.delta.layout import Kind, Tag, own_hash
from fleece.delta.protection import Frames
from fleece.delta.reader import RecordFile
from fleece.delta.spool import HashSpool, RowSpool
from fleece.errors import DeltaError
from fleece.extents import Extents, Gathering


@dataclass(frozen=True)
class Proven:
    """The part of an unfinished delta that holds what it says, from its first byte on.

    Attributes:
        head: its header.
        frames: how its frames are stored.
        header_hash, last_record: own hashes of the header, and of the last record (of the header
            if there is none).
        end: bytes of the file; nothing behind them is believed.
        rows: of all its records.
        leaves: the hashes of all leaves in data records.
        data, zeros: the ranges of the disk that its records hold.
        frame_bytes: of all its zstd frames.
    """

    head: Header
    frames: Frames
    header_hash: bytes
    last_record: bytes
    end: int
    rows: RowSpool
    leaves: HashSpool
    data: Extents
    zeros: Extents
    frame_bytes: int

    def extents(self) -> Extents:
        """The ranges of the disk that its records hold, of both kinds."""
        return self.data.union(self.zeros)


class PartialDelta(RecordFile):
    """A file that begins with a delta's header; what follows may end anywhere, or be garbage.

    Args:
        blob: the file; only its bytes are believed, never its name. It is closed with this.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
    """

    def proven(self) -> Proven:
        """Read the records one by one, decode each, and stop before the first that is not whole.

        What ends a finished delta is not a record: it ends this walk too.
        """
        size, overhead = self.geometry.leaf_size, self.frames.overhead
        rows, leaves = RowSpool(size), HashSpool(self.geometry.algorithm.size)
        data, zeros = Gathering(), Gathering()
        frame_bytes = 0
        position, previous = self.records_start, self._header_hash
        context = zstandard.ZstdDecompressor()
        while position < self.length:
            try:
                packed = self.record_frame(position, self.length)
                found = self._checked(packed, position, len(rows), previous, context)
            except DeltaError:
                break
            rows.add(found.offset, found.length, position, found.frame_length, found.kind)
            held = data if found.kind is Kind.DATA else zeros
            held.add(found.offset, found.offset + found.length)
            frame_bytes += found.frame_length
            if found.kind is Kind.DATA:
                leaves.add_run(found.offset // size, found.leaves)
            position += len(packed) + overhead
            position += found.frame_length + overhead if found.kind is Kind.DATA else 0
            previous = own_hash(packed, self.geometry.algorithm)
        return Proven(
            self.header,
            self.frames,
            self._header_hash,
            previous,
            position,
            rows,
            leaves,
            data.extents(),
            zeros.extents(),
            frame_bytes,
        )

    def _checked(
        self,
        packed: bytes,
        position: int,
        sequence: int,
        previous: bytes,
        context: zstandard.ZstdDecompressor,
    ) -> record.Record:
        """The record of a RECORD frame at a position of the file, its data decoded and compared.

        Raises:
            DeltaError: it is not the next record of this file, or its data is not whole.
        """
        found = record.parse(packed, self.geometry, self.where)
        if (found.file_id, found.sequence, found.previous) != (
            self.header.file_id,
            sequence,
            previous,
        ):
            raise self.damaged("a record is not in its place", found.offset)
        if found.kind is Kind.DATA:
            place = position + len(packed) + self.frames.overhead
            frame = self.frame(Tag.DATA, place, found.frame_length)
            self.check_frame(found, frame)
            self.unpack(found, frame, context)
        return found
