"""Reads of a disk: the dirty leaves, less what is known to be zero, in 2 MiB; a worker's reader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fleece.disk.base import ReadableDisk, Reader
from fleece.extents import Extents

MAX_READ = 2 * 1024 * 1024
"""The most bytes of one read. Threads that wait for each other do it once for each; longer reads
outgrow the processor's caches (docs/internals/decisions/0012-figures.rst)."""

GAP = 64 * 1024
"""Clean bytes that are read along rather than start another request."""

ASK_FROM = 1024 * 1024
"""Dirty ranges shorter than this are read without asking whether they are zero."""

WINDOW = 16 * 1024 * 1024 * 1024
"""Bytes of dirty disk whose zero status is asked at a time."""


class ReadItem(NamedTuple):
    """One read request, and the parts of it that are wanted. A disk may have millions.

    Attributes:
        start, end: in bytes of disk, at most `MAX_READ` apart.
        wanted: (start, end) pairs within, whole leaves each.
    """

    start: int
    end: int
    wanted: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Bytes to read."""
        return self.end - self.start


def known_zeros(disk: ReadableDisk, dirty: Extents, leaf_size: int, gap: int = GAP) -> Extents:
    """The whole leaves of `dirty` that need not be read to know that they are zeros.

    Args:
        disk: to ask.
        dirty: what is wanted.
        leaf_size: in bytes.
        gap: bytes between that may be asked about as well.
    """
    joined = dirty.join(gap)
    long = joined.length >= ASK_FROM
    asked = Extents(joined.start[long], joined.end[long])
    zeros = disk.zero_extents(asked).align_in(leaf_size, disk.size)
    return zeros.intersect(dirty)


def read_items(wanted: Extents, gap: int = GAP) -> Iterator[ReadItem]:
    """Cover `wanted` (whole leaves) by reads that join small gaps, in order of the disk.

    Args:
        wanted: what to read.
        gap: bytes that may be read along.
    """
    if len(wanted) == 0:
        return
    reads = wanted.join(gap)
    starts, ends = reads.split(MAX_READ)
    parts, stops = wanted.split(MAX_READ)
    if np.array_equal(parts, starts) and np.array_equal(stops, ends):
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield ReadItem(start, end, ((start, end),))
        return
    first = np.searchsorted(parts, starts).tolist()
    part_list, stop_list = parts.tolist(), stops.tolist()
    last = [*first[1:], len(part_list)]
    for start, end, low, high in zip(starts.tolist(), ends.tolist(), first, last, strict=True):
        pairs = tuple(zip(part_list[low:high], stop_list[low:high], strict=True))
        if pairs:  # a gap that fills a whole read is skipped
            yield ReadItem(start, end, pairs)


class OneReader:
    """The reader of the disk that one worker is at. Close it in the end.

    A worker meets many disks one after the other, and items of work come disk by disk: no reader
    that was closed is wanted again.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._disk: ReadableDisk | None = None
        self._reader: Reader | None = None

    def of(self, disk: ReadableDisk) -> Reader:
        """The reader of this disk; that of the disk before is closed.

        Raises:
            FleeceError: the disk cannot be opened.
        """
        if self._reader is None or disk is not self._disk:
            self.close()
            self._reader = self._stack.enter_context(disk.reader())
            self._disk = disk
        return self._reader

    def close(self) -> None:
        """Close the reader. Safe to repeat."""
        self._disk = self._reader = None
        self._stack.close()
