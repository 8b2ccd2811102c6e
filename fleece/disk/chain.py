"""The disk of a point, read at random out of its chain: one frame is decoded for one leaf."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece.cache import Cache
from fleece.delta.chain import Chain, ChainMap
from fleece.delta.layout import Kind
from fleece.delta.pages import IndexRows
from fleece.errors import UsageError
from fleece.extents import Extents, Int64Array

WINDOW = 256 * 1024 * 1024
"""Bytes of disk whose merged map is made, and kept, at a time."""

_WINDOWS = 32
_FRAMES = 32
_STEP = 16 * 1024 * 1024 * 1024


@dataclass(frozen=True)
class _Window:
    """The merged map of a part of the disk, as look-ups need it."""

    start: Int64Array
    end: Int64Array
    owner: list[int]
    records: IndexRows

    @staticmethod
    def of(picture: ChainMap) -> _Window:
        return _Window(picture.start, picture.end, picture.owner.tolist(), picture.records)


@dataclass(frozen=True)
class _Piece:
    """A part of the disk that one record holds."""

    start: int
    end: int
    owner: int
    record: tuple[int, int, int, int, int]

    @property
    def zero(self) -> bool:
        return self.record[4] == Kind.ZERO


class ChainDisk:
    """A readable disk (`fleece.disk.base.ReadableDisk`) over an open chain.

    Every read is checked: the record, its frame and its leaves, each against its hash. Any number
    of threads can read at once; a record that several of them want is decoded once. Memory is
    bounded, whatever the size of the disk: maps of `WINDOW` bytes and decoded records (1 MiB at
    most each), the last 32 of both.

    Args:
        chain: open for as long as the disk is used.

    Attributes:
        size: in bytes.
        where: its name in messages.
    """

    def __init__(self, chain: Chain) -> None:
        head = chain.deltas[0].header
        self.size = head.size
        self.where = f"disk {head.disk} at point {head.point.id}"
        self._chain = chain
        self._windows: Cache[_Window] = Cache(_WINDOWS)
        self._frames: Cache[bytes] = Cache(_FRAMES)
        self._own = threading.local()

    @property
    def decoded(self) -> int:
        """Frames that were decoded so far."""
        return self._frames.made

    @contextlib.contextmanager
    def reader(self) -> Iterator[ChainDisk]:
        """Any thread may read through the disk itself."""
        yield self

    def read(self, offset: int, length: int) -> bytearray:
        """Exactly `length` bytes.

        Raises:
            DeltaError: a record is damaged.
            UsageError: the range is not within the disk.
        """
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer, of bytes, from `offset` of the disk.

        Raises:
            DeltaError: a record is damaged.
            UsageError: the range is not within the disk.
        """
        for piece in self._pieces(offset, offset + len(buffer)):
            part = slice(piece.start - offset, piece.end - offset)
            if piece.zero:
                buffer[part] = bytes(piece.end - piece.start)
            else:
                at = piece.record[0]
                data = memoryview(self._data(piece))
                buffer[part] = data[piece.start - at : piece.end - at]

    def allocation(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The ranges of `[start, end)` in order, each with whether it reads as zeros."""
        before: tuple[int, int, bool] | None = None
        for piece in self._pieces(start, end):
            if before is not None and before[2] == piece.zero:
                before = before[0], piece.end, piece.zero
            else:
                if before is not None:
                    yield before
                before = piece.start, piece.end, piece.zero
        if before is not None:
            yield before

    def zero_extents(self, within: Extents) -> Extents:
        """The parts of `within` that zero records hold."""
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, end in within.align_out(_STEP, self.size):
            for low in range(start, end, _STEP):
                high = min(low + _STEP, end)
                found = self._chain.map(low, high).extents(zero=True)
                zeros = found.intersect(within.clip(low, high))
                starts.append(zeros.start)
                ends.append(zeros.end)
        return Extents.normal(np.concatenate(starts), np.concatenate(ends))

    def _pieces(self, start: int, end: int) -> Iterator[_Piece]:
        if not 0 <= start <= end <= self.size:
            raise UsageError(f"bytes {start} to {end} are not within {self.size}", where=self.where)
        while start < end:
            stop = min(end, (start // WINDOW + 1) * WINDOW)
            window = self._window(start // WINDOW)
            first = int(np.searchsorted(window.end, start, side="right"))
            last = int(np.searchsorted(window.start, stop, side="left"))
            for at in range(first, last):
                low, high = int(window.start[at]), int(window.end[at])
                row = window.records[at].item()
                yield _Piece(max(low, start), min(high, stop), window.owner[at], row)
            start = stop

    def _window(self, number: int) -> _Window:
        low = number * WINDOW
        high = min(low + WINDOW, self.size)
        return self._windows.get(number, lambda: _Window.of(self._chain.map(low, high)))

    def _data(self, piece: _Piece) -> bytes:
        """The bytes of a data record, from the cache or from its file."""
        _, _, position, _, _ = piece.record
        return self._frames.get((piece.owner, position), lambda: self._decode(piece))

    def _decode(self, piece: _Piece) -> bytes:
        delta = self._chain.deltas[piece.owner]
        record, frame = delta.record_at(*piece.record)
        return delta.unpack(record, frame, self._context())

    def _context(self) -> zstandard.ZstdDecompressor:
        """The calling thread's own decompressor."""
        if not hasattr(self._own, "context"):
            self._own.context = zstandard.ZstdDecompressor()
        context: zstandard.ZstdDecompressor = self._own.context
        return context
