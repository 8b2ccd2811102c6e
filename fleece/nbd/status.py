"""List the extents of an export by block status, exact for short, long and uneven replies.

A reply may describe less than was asked (QEMU stops at 131072 extents), or more (the last extent
may reach past the range), and differently for each context. So every context keeps its own place,
and the next request starts at the least of them. Advancing by one context alone loses what another
one has not covered yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from fleece.errors import SourceError
from fleece.extents import Extents, Int64Array
from fleece.nbd.connection import MAX_STATUS, ChunkArray


class StatusServer(Protocol):
    """What answers block status requests."""

    def block_status(self, offset: int, length: int) -> Mapping[str, ChunkArray]:
        """Each context's descriptors from `offset` on."""


class _Context:
    """The place of one context within a range, and what it has said so far."""

    def __init__(self, name: str, mask: int, start: int, end: int) -> None:
        self.name = name
        self.place = start
        self._mask = mask
        self._end = end
        self._starts: list[Int64Array] = []
        self._ends: list[Int64Array] = []

    def take(self, offset: int, chunks: ChunkArray) -> None:
        """Add a reply that starts at `offset`, from this context's place on, up to the end."""
        if len(chunks) == 0 or bool(np.any(chunks[:, 0] <= 0)):
            raise SourceError(f"the server sent an empty extent for context {self.name}")
        ends = offset + np.cumsum(chunks[:, 0])
        starts = ends - chunks[:, 0]
        flagged = (chunks[:, 1] & self._mask) != 0
        low = np.clip(starts[flagged], self.place, self._end)
        high = np.clip(ends[flagged], self.place, self._end)
        self._starts.append(low)
        self._ends.append(high)
        self.place = max(self.place, min(int(ends[-1]), self._end))

    def extents(self) -> Extents:
        """What was flagged."""
        none = np.empty(0, np.int64)
        return Extents.normal(
            np.concatenate([none, *self._starts]), np.concatenate([none, *self._ends])
        )


def flagged(
    server: StatusServer, start: int, end: int, masks: Mapping[str, int]
) -> dict[str, Extents]:
    """For each context, the part of `[start, end)` whose flags have a bit of its mask.

    Args:
        server: a connection with exactly these contexts.
        start, end: bytes of disk.
        masks: flag mask by context name.

    Raises:
        SourceError: the server broke the protocol, or refused.
    """
    contexts = [_Context(name, mask, start, end) for name, mask in masks.items()]
    while (place := min(context.place for context in contexts)) < end:
        replies = server.block_status(place, min(end - place, MAX_STATUS))
        for context in contexts:
            if context.name not in replies:
                raise SourceError(f"the server did not answer for context {context.name}")
            context.take(place, replies[context.name])
    return {context.name: context.extents() for context in contexts}


def windows(ranges: Extents, most: int) -> Iterator[Extents]:
    """Cut a set of ranges into consecutive sets of at most `most` bytes each, in order."""
    starts, ends = ranges.split(most)
    at = 0
    while at < len(starts):
        reach = np.cumsum(ends[at:] - starts[at:])
        count = max(1, int(np.searchsorted(reach, most, side="right")))
        yield Extents.normal(starts[at : at + count], ends[at : at + count])
        at += count
