"""List the extents of an export by block status, exact for short, long and uneven replies.

A reply may describe less than was asked (QEMU stops at 131072 extents), or more (the last extent
may reach past the range), and differently for each context. So every context keeps its own place,
and the next request starts at the least of them. Advancing by one context alone loses what another
one has not covered yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fleece.errors import SourceError
from fleece.extents import Extents, Int64Array
from fleece.nbd.connection import MAX_STATUS, ChunkArray

IN_FLIGHT = 16
"""Requests for a dirty bitmap that are sent before the first of them is answered: 6 to 7 times as
fast on a sparse disk of 16 TiB as one at a time, and more gain nothing (docs/benchmarks.rst)."""

_BATCH = 65536
"""Descriptors that are looked at together."""


class StatusServer(Protocol):
    """What answers block status requests."""

    def block_status(self, offset: int, length: int) -> Mapping[str, ChunkArray]:
        """Each context's descriptors from `offset` on."""


class QueueingServer(Protocol):
    """What takes many block status requests before it answers, in any order."""

    def ask_status(self, offset: int, length: int) -> None:
        """Send a request."""

    def status_answer(self) -> tuple[int, Mapping[str, ChunkArray]]:
        """Wait for one: where its request began, and each context's descriptors from there on."""


class _Context:
    """What one context has said so far. Replies are looked at many at once: most are short."""

    def __init__(self, name: str, mask: int) -> None:
        self.name = name
        self._mask = mask
        self._replies: list[tuple[int, int, int, ChunkArray]] = []
        self._rows = 0
        self._starts: list[Int64Array] = []
        self._ends: list[Int64Array] = []

    def take(self, start: int, end: int, offset: int, replies: Mapping[str, ChunkArray]) -> int:
        """Add what a reply that begins at `offset` (at most `start`) says of `[start, end)`.

        Returns:
            Where the next request must begin; `end`: nowhere.
        """
        if self.name not in replies:
            raise SourceError(f"the server did not answer for context {self.name}")
        chunks = replies[self.name]
        reach = min(end, offset + int(chunks[:, 0].sum()))
        if reach <= offset:
            raise self._empty()
        self._replies.append((start, end, offset, chunks))
        self._rows += len(chunks)
        if self._rows >= _BATCH:
            self._look()
        return max(start, reach)

    def extents(self) -> Extents:
        """What was flagged."""
        self._look()
        none = np.empty(0, np.int64)
        return Extents.normal(
            np.concatenate([none, *self._starts]), np.concatenate([none, *self._ends])
        )

    def _look(self) -> None:
        """Turn the replies into extents."""
        if not self._replies:
            return
        chunks = np.concatenate([reply[3] for reply in self._replies])
        count = np.array([len(reply[3]) for reply in self._replies])
        low, high, offset = np.array([reply[:3] for reply in self._replies], np.int64).T
        self._replies, self._rows = [], 0
        length = chunks[:, 0]
        if bool(np.any(length <= 0)):
            raise self._empty()
        end = np.cumsum(length)
        first = np.cumsum(count) - count
        end += np.repeat(offset - (end - length)[first], count)
        flags = (chunks[:, 1] & self._mask) != 0
        low, high = np.repeat(low, count)[flags], np.repeat(high, count)[flags]
        self._starts.append(np.clip((end - length)[flags], low, high))
        self._ends.append(np.clip(end[flags], low, high))

    def _empty(self) -> SourceError:
        return SourceError(f"the server sent an empty extent for context {self.name}")


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
    contexts = [_Context(name, mask) for name, mask in masks.items()]
    places = [start] * len(contexts)
    while (offset := min(places, default=end)) < end:
        replies = server.block_status(offset, min(end - offset, MAX_STATUS))
        places = [
            place if place >= end else context.take(place, end, offset, replies)
            for context, place in zip(contexts, places, strict=True)
        ]
    return {context.name: context.extents() for context in contexts}


def flagged_ahead(server: QueueingServer, within: Extents, name: str, mask: int) -> Extents:
    """The part of `within` whose flags in one context have a bit of `mask`, asked ahead.

    Not for `base:allocation`: a server that has to look at the image's tables takes longer for
    several requests at once than for one after the other.

    Args:
        server: a connection with exactly this context.
        within: bytes of disk.
        name: of the context.
        mask: of flags.

    Raises:
        SourceError: the server broke the protocol, or refused one of the requests.
    """
    context = _Context(name, mask)
    starts, ends = within.split(MAX_STATUS)
    waiting = zip(starts.tolist(), ends.tolist(), strict=True)
    flying: dict[int, int] = {}

    def send(start: int, end: int) -> None:
        server.ask_status(start, end - start)
        flying[start] = end

    for start, end in itertools.islice(waiting, IN_FLIGHT):
        send(start, end)
    while flying:
        start, replies = server.status_answer()
        end = flying.pop(start)
        start = context.take(start, end, start, replies)
        if start < end:
            send(start, end)
        elif (following := next(waiting, None)) is not None:
            send(*following)
    return context.extents()
