"""Sets of byte ranges of a disk, as numpy arrays: a disk may have millions of them.

An `Extents` is always normal: sorted, without empty ranges, and no two ranges touch or overlap.
So two sets are the same if their arrays are. All functions are pure.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fleece.ordered import distinct

_FOLD = 1 << 14

_Row = TypeVar("_Row")

Int64Array = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Extents:
    """A set of ranges `[start, end)`, in bytes unless the text says another unit.

    Attributes:
        start: int64[n], ascending.
        end: int64[n], `end[i] > start[i]` and `start[i + 1] > end[i]`.
    """

    start: Int64Array
    end: Int64Array

    @staticmethod
    def empty() -> Extents:
        """The set without ranges."""
        none = np.empty(0, np.int64)
        return Extents(none, none)

    @staticmethod
    def whole(size: int) -> Extents:
        """The one range `[0, size)`, or the empty set for size 0."""
        return Extents.of([(0, size)])

    @staticmethod
    def of(pairs: Iterable[tuple[int, int]]) -> Extents:
        """The normal set of `(start, end)` pairs, given in any order, overlapping or not."""
        array = np.array(list(pairs), np.int64).reshape(-1, 2)
        return Extents.normal(array[:, 0], array[:, 1])

    @staticmethod
    def joined(parts: Sequence[Extents]) -> Extents:
        """The union of any number of sets."""
        none = np.empty(0, np.int64)
        return Extents.normal(
            np.concatenate([none, *(part.start for part in parts)]),
            np.concatenate([none, *(part.end for part in parts)]),
        )

    @staticmethod
    def normal(start: Int64Array, end: Int64Array) -> Extents:
        """The normal set of ranges in any order; empty ranges are dropped, touching ones joined."""
        keep = end > start
        start, end = start[keep], end[keep]
        if len(start) == 0:
            return Extents.empty()
        if np.any(start[1:] < start[:-1]):
            order = np.argsort(start, kind="stable")
            start, end = start[order], end[order]
        reach = np.maximum.accumulate(end)
        opens = np.concatenate(([True], start[1:] > reach[:-1]))
        closes = np.concatenate((opens[1:], [True]))
        return Extents(start[opens], reach[closes])

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """`(start, end)` pairs in order, as Python integers."""
        return zip(self.start.tolist(), self.end.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Extents):
            return NotImplemented
        return np.array_equal(self.start, other.start) and np.array_equal(self.end, other.end)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"[{a}, {b})" for a, b in list(self)[:4])
        return f"Extents({shown}{', ...' if len(self) > 4 else ''})"

    @property
    def length(self) -> Int64Array:
        """int64[n]: the length of each range."""
        return self.end - self.start

    @property
    def total(self) -> int:
        """The sum of all lengths."""
        return int(self.length.sum())

    def union(self, other: Extents) -> Extents:
        """What is in either set."""
        return Extents.normal(
            np.concatenate((self.start, other.start)), np.concatenate((self.end, other.end))
        )

    def intersect(self, other: Extents) -> Extents:
        """What is in both sets."""
        if len(other) == 0:
            return other
        return self._sweep(other, lambda mine, theirs: mine & theirs)

    def subtract(self, other: Extents) -> Extents:
        """What is in this set and not in the other."""
        if len(other) == 0:
            return self
        return self._sweep(other, lambda mine, theirs: mine & ~theirs)

    def _sweep(self, other: Extents, wanted: Callable[[Flags, Flags], Flags]) -> Extents:
        """Walk the boundaries of both sets once; keep the pieces that `wanted` picks."""
        if len(self) == 0:
            return self
        bounds = distinct(np.concatenate((self.start, self.end, other.start, other.end)))
        inside = wanted(self._covers(bounds[:-1]), other._covers(bounds[:-1]))
        return Extents.normal(bounds[:-1][inside], bounds[1:][inside])

    def _covers(self, at: Int64Array) -> Flags:
        """bool[n]: which positions lie in this set."""
        opened = np.searchsorted(self.start, at, side="right")
        closed = np.searchsorted(self.end, at, side="right")
        return opened > closed

    def contains(self, start: Int64Array, end: Int64Array) -> Flags:
        """bool[n]: which of the given ranges lie wholly in this set."""
        if len(self) == 0:
            return np.zeros(len(start), np.bool_)
        row = np.searchsorted(self.start, start, side="right") - 1
        found = row >= 0
        row = np.maximum(row, 0)
        return found & (self.end[row] >= end) & (self.start[row] <= start)

    def clip(self, start: int, end: int) -> Extents:
        """What lies in `[start, end)`."""
        first = np.searchsorted(self.end, start, side="right")
        near = slice(first, np.searchsorted(self.start, end, side="left"))
        low, high = np.maximum(self.start[near], start), np.minimum(self.end[near], end)
        keep = high > low
        return Extents(low[keep], high[keep])

    def align_out(self, unit: int, limit: int) -> Extents:
        """Every range widened to multiples of `unit`, none past `limit`."""
        start = self.start // unit * unit
        end = np.minimum(-(-self.end // unit) * unit, limit)
        return Extents.normal(start, end)

    def align_in(self, unit: int, limit: int) -> Extents:
        """Every range narrowed to multiples of `unit`; `limit`, the end of the disk, is one too."""
        start = -(-self.start // unit) * unit
        end = np.where(self.end >= limit, limit, self.end // unit * unit)
        return Extents.normal(start, np.maximum(end, start))

    def join(self, gap: int) -> Extents:
        """Ranges that lie at most `gap` apart made one."""
        if len(self) < 2:
            return self
        opens = np.concatenate(([True], self.start[1:] - self.end[:-1] > gap))
        closes = np.concatenate((opens[1:], [True]))
        return Extents(self.start[opens], self.end[closes])

    def split(self, unit: int) -> tuple[Int64Array, Int64Array]:
        """Cut at every multiple of `unit`.

        Returns:
            (start, end), int64[m] each: pieces in order, none across a multiple of `unit`. They
            touch one another, so they are no `Extents`.
        """
        first, last = self.start // unit, (self.end - 1) // unit
        count = last - first + 1
        row = np.repeat(np.arange(len(self)), count)
        nth = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        cell = first[row] + nth
        start = np.maximum(cell * unit, self.start[row])
        end = np.minimum((cell + 1) * unit, self.end[row])
        return start, end

    def windows(self, most: int) -> Iterator[Extents]:
        """Cut at multiples of `most` into consecutive sets of at most `most` bytes, in order."""
        starts, ends = self.split(most)
        at = 0
        while at < len(starts):
            reach = np.cumsum(ends[at:] - starts[at:])
            count = max(1, int(np.searchsorted(reach, most, side="right")))
            yield Extents.normal(starts[at : at + count], ends[at : at + count])
            at += count


def joined(
    rows: Iterable[_Row], kind: Callable[[_Row], object], both: Callable[[_Row, _Row], _Row]
) -> Iterator[_Row]:
    """Join rows that follow one another without gaps, as far as they are of one kind.

    Args:
        rows: in the disk's order.
        kind: of a row.
        both: one row for two that follow one another.
    """
    for _, alike in itertools.groupby(rows, kind):
        yield functools.reduce(both, alike)


class Gathering:
    """Ranges that come one by one, in any order, each part of the disk once.

    Memory follows the number of gaps between them, not the number of ranges.
    """

    def __init__(self) -> None:
        self._joined = Extents.empty()
        self._new: list[tuple[int, int]] = []
        self.total = 0

    def add(self, start: int, end: int) -> None:
        """Take `[start, end)` in."""
        self._new.append((start, end))
        self.total += end - start
        if len(self._new) >= _FOLD:
            self.extents()

    def extents(self) -> Extents:
        """All that came; its total is less than `total` if something came twice."""
        self._joined = self._joined.union(Extents.of(self._new))
        self._new.clear()
        return self._joined
