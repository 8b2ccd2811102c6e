"""A delta that was not finished: how much of it is proven, so that a writer can go on behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zstandard

from fleece.delta import record
from fleece.delta.header import Header
from fleece.delta.layout import INDEX_ROW, Kind, Tag, own_hash
from fleece.delta.protection import Frames
from fleece.delta.reader import RecordFile
from fleece.errors import DeltaError
from fleece.extents import Extents


@dataclass(frozen=True)
class Proven:
    """The part of an unfinished delta that holds what it says, from its first byte on.

    Attributes:
        head: its header.
        frames: how its frames are stored.
        header_hash, last_record: own hashes of the header, and of the last record (of the header
            if there is none).
        end: bytes of the file; nothing behind them is believed.
        rows: as in the index (`layout.INDEX_ROW`), in the order of the file.
        leaves: (number of the first leaf, hashes of its leaves joined) of each data record.
    """

    head: Header
    frames: Frames
    header_hash: bytes
    last_record: bytes
    end: int
    rows: tuple[tuple[int, int, int, int, int], ...]
    leaves: tuple[tuple[int, bytes], ...]

    def extents(self, kind: Kind | None = None) -> Extents:
        """The ranges of the disk that its records hold, of one kind or of both."""
        rows = np.array(list(self.rows), INDEX_ROW)
        if kind is not None:
            rows = rows[rows["kind"] == kind]
        start = rows["offset"].astype(np.int64)
        return Extents.normal(start, start + rows["length"].astype(np.int64))


class PartialDelta(RecordFile):
    """A file that begins with a delta's header; what follows may end anywhere, or be garbage.

    Args:
        path: the file; only its bytes are believed, never its name.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
    """

    def proven(self) -> Proven:
        """Read the records one by one, decode each, and stop before the first that is not whole.

        What ends a finished delta is not a record: it ends this walk too.
        """
        size, overhead = self.geometry.leaf_size, self.frames.overhead
        rows: list[tuple[int, int, int, int, int]] = []
        leaves: list[tuple[int, bytes]] = []
        position, previous = self.records_start, self._header_hash
        context = zstandard.ZstdDecompressor()
        while position < self.length:
            try:
                packed = self.record_frame(position, self.length)
                found = self._checked(packed, position, len(rows), previous, context)
            except DeltaError:
                break
            rows.append((found.offset, found.length, position, found.frame_length, found.kind))
            if found.kind is Kind.DATA:
                leaves.append((found.offset // size, found.leaves))
            position += len(packed) + overhead
            position += found.frame_length + overhead if found.kind is Kind.DATA else 0
            previous = own_hash(packed, self.geometry.algorithm)
        return Proven(
            self.header,
            self.frames,
            self._header_hash,
            previous,
            position,
            tuple(rows),
            tuple(leaves),
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
        found = record.parse(packed, self.geometry, self.path)
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
