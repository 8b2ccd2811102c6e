"""Let a point's scratch shrink while it is read: what is durable in a delta is no longer needed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from fleece.engine.work.reads import GAP
from fleece.extents import Extents
from fleece.source.base import Point

BATCH = 64 * 1024 * 1024
"""Bytes of disk that are made durable, and then reclaimed, at a time."""

SMALL_BATCH = 4 * 1024 * 1024
"""The same where the scratch has little room left."""

MOST_GAPS = 4096
"""Ranges that are reclaimed at the start at most, the longest ones."""


class Reclaim:
    """What of one disk was stored and not reclaimed yet. For any number of threads.

    Args:
        point: that is read.
        disk: the disk's name.
        sync: makes durable what the delta's file holds, as `NewObject.sync`.
    """

    def __init__(self, point: Point, disk: str, sync: Callable[[], None]) -> None:
        self._point = point
        self._disk = disk
        self._sync = sync
        self._lock = threading.Lock()
        self._pending: list[tuple[int, int]] = []
        self._bytes = 0

    def stored(self, start: int, end: int) -> None:
        """A range of the disk is in the delta's file, and nobody reads it again.

        From time to time this makes the file durable. Only then are its ranges reclaimed.
        """
        with self._lock:
            self._pending.append((start, end))
            self._bytes += end - start
            if self._bytes < (SMALL_BATCH if self._point.scarce else BATCH):
                return
            ready, self._pending, self._bytes = self._pending, [], 0
        self._sync()
        self._point.reclaim(self._disk, Extents.of(ready))


def never_read(dirty: Extents, size: int) -> Extents:
    """The parts of a disk that no read for a delta of `dirty` touches, but for short ones.

    Args:
        dirty: whole leaves.
        size: of the disk in bytes.
    """
    clean = Extents.whole(size).subtract(dirty.join(GAP))
    if len(clean) <= MOST_GAPS:
        return clean
    longest = np.sort(np.argpartition(clean.length, -MOST_GAPS)[-MOST_GAPS:])
    return Extents(clean.start[longest], clean.end[longest])
