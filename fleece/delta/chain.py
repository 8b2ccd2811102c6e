"""The deltas that lead to a point of one disk, seen as one: its map, its tree, its data."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleece.delta.header import Header
from fleece.delta.layout import INDEX_ROW, Kind, Tag
from fleece.delta.pagecache import page_cache
from fleece.delta.pages import IndexRows
from fleece.delta.reader import DeltaReader
from fleece.errors import DeltaError
from fleece.extents import Extents, Int64Array
from fleece.tree import Geometry, HashArray

_RECORDS = 1 << 18
"""Records whose map is made at a time; it takes some ten MiB."""

_CELL = 1 << 30
"""Bytes of disk that are mapped at a time at least."""


@dataclass(frozen=True)
class ChainMap:
    """Which delta holds each part of the disk: disjoint pieces, by ascending start.

    Attributes:
        start, end: int64[n], bytes of disk.
        owner: int32[n], position in `Chain.deltas`.
        row: int64[n], position in `rows`.
        rows: the index rows that the map was made of, of one delta after the other.
    """

    start: Int64Array
    end: Int64Array
    owner: npt.NDArray[np.int32]
    row: Int64Array
    rows: IndexRows

    def __len__(self) -> int:
        return len(self.start)

    @property
    def zero(self) -> npt.NDArray[np.bool_]:
        """bool[n]: which pieces read as zeros."""
        flags: npt.NDArray[np.bool_] = self.rows["kind"][self.row] == Kind.ZERO
        return flags

    @property
    def records(self) -> IndexRows:
        """The index row that holds each piece."""
        return self.rows[self.row]

    def of_owners(self, count: int) -> Iterator[Int64Array]:
        """Of each of the first `count` deltas, the numbers of its pieces, ascending."""
        order = np.argsort(self.owner, kind="stable")
        bounds = np.searchsorted(self.owner[order], np.arange(count + 1))
        for low, high in itertools.pairwise(bounds.tolist()):
            yield order[low:high]

    def within(self, wanted: Extents) -> ChainMap:
        """The map of some parts of the disk."""
        start, end, piece = _cut(wanted, self.start, self.end)
        return ChainMap(start, end, self.owner[piece], self.row[piece], self.rows)

    def extents(self, zero: bool) -> Extents:
        """The parts of the disk that read as zeros, or those that hold data."""
        picked = self.zero == zero
        return Extents.normal(self.start[picked], self.end[picked])


class Chain:
    """An unbroken line of deltas of one disk, newest first, down to one that covers it whole.

    Also the `fleece.tree.NodeSource` of the disk at the newest point.

    Raises:
        DeltaError: the deltas do not build on one another.
    """

    def __init__(self, deltas: Sequence[DeltaReader]) -> None:
        self.deltas = tuple(deltas)
        for child, parent in zip(self.deltas, self.deltas[1:], strict=False):
            check_link(child, parent)
        if self.deltas[-1].header.parent is not None:
            raise DeltaError("its parent is missing", where=self.deltas[-1].where)
        if len(self.deltas) > 1:
            shared = page_cache(len(self.deltas))
            for delta in self.deltas:
                delta.cache = shared

    def on(self, delta: DeltaReader) -> Chain:
        """The chain with one more delta on it.

        Raises:
            DeltaError: it does not build on the newest one.
        """
        check_link(delta, self.deltas[0])
        chain = copy.copy(self)
        chain.deltas = (delta, *self.deltas)
        return chain

    def below(self, count: int) -> Chain:
        """The chain without its `count` newest deltas; nothing is checked again.

        Args:
            count: less than the chain has.
        """
        assert 0 <= count < len(self.deltas)
        chain = copy.copy(self)
        chain.deltas = self.deltas[count:]
        return chain

    @property
    def geometry(self) -> Geometry:
        """The geometry of the disk at the newest point."""
        return self.deltas[0].geometry

    @property
    def top(self) -> bytes:
        """The hash of the top node at the newest point."""
        return self.deltas[0].footer.top

    @property
    def root(self) -> bytes:
        """The root of the disk at the newest point."""
        return self.deltas[0].footer.root

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """The children of tree nodes, each from the newest delta that touched it.

        Args:
            level: of the nodes, >= 1.
            nodes: int64[n], ascending.
        """
        shape = self.geometry
        blank = shape.zero_hashes(level - 1, len(nodes) * shape.fan_out)
        result = blank.reshape(len(nodes), shape.fan_out, shape.algorithm.size).copy()
        span = shape.fan_out**level
        missing = np.arange(len(nodes))
        for delta in self.deltas:
            if len(missing) == 0:
                break
            found, children = delta.nodes(level, nodes[missing])
            result[missing[found]] = children
            missing = np.delete(missing, found)
            # A node that a delta touched and does not hold is zero as a whole
            # (docs/internals/format.rst), so one look at its first byte settles it. What reaches
            # past the end is always held.
            settled = delta.is_zeroed(nodes[missing] * span * shape.leaf_size)
            settled &= (nodes[missing] + 1) * span <= shape.leaves
            missing = missing[~settled]
        return result

    def leaf_hashes(self, first: int, count: int) -> HashArray:
        """uint8[count, hash size]: the hashes of consecutive leaves.

        Args:
            first: number of the first leaf, a multiple of the fan-out.
            count: how many.
        """
        shape = self.geometry
        if shape.height == 0:
            return np.frombuffer(self.top, np.uint8).reshape(1, -1)[:count]
        nodes = np.arange(first // shape.fan_out, -(-(first + count) // shape.fan_out))
        return self.children(1, nodes).reshape(-1, shape.algorithm.size)[:count]

    def map(self, start: int = 0, end: int | None = None) -> ChainMap:
        """The merged map of the disk, or of the part `[start, end)` of it.

        Of a part, only the pages of the indexes that hold it are read.

        Raises:
            DeltaError: a part of the disk is in no delta.
        """
        wanted = Extents.of([(start, self.geometry.size if end is None else end)])
        picture = overlay(self.deltas, wanted)
        if Extents.normal(picture.start, picture.end) != wanted:
            raise DeltaError(
                "parts of the disk are in none of its deltas", where=self.deltas[0].where
            )
        return picture

    def maps(self) -> Iterator[ChainMap]:
        """The merged map, a part of the disk at a time: memory does not follow the disk's size.

        Raises:
            DeltaError: a part of the disk is in no delta.
        """
        for low, high in steps(self.deltas):
            yield self.map(low, high)


def steps(deltas: Sequence[DeltaReader]) -> Iterator[tuple[int, int]]:
    """Parts `[start, end)` of the disk, in bytes, that hold a bounded number of records each.

    It is told from the directories alone, taking records as evenly spread within an index page.
    """
    size = deltas[0].geometry.size
    cells = np.arange(0, size, _CELL)
    before = _records_before(deltas, cells)
    start = 0
    while start < size:
        most = before[start // _CELL] + _RECORDS
        following = int(np.searchsorted(before, most, side="right")) * _CELL
        end = min(max(following - _CELL, start + _CELL), size)
        if following >= size:
            end = size
        yield start, end
        start = end


def _records_before(deltas: Sequence[DeltaReader], at: Int64Array) -> npt.NDArray[np.float64]:
    """float64[n]: about how many records of all deltas begin before places of the disk."""
    listed = [page for delta in deltas for page in delta.pages if page.tag is Tag.INDEX]
    if not listed:
        return np.zeros(len(at))
    first = np.array([page.first for page in listed], np.int64)
    behind = np.array([page.last for page in listed], np.int64) + 1
    rate = np.array([page.count for page in listed], np.float64) / np.maximum(behind - first, 1)
    edges, which = np.unique(np.concatenate((first, behind)), return_inverse=True)
    slope = np.cumsum(np.bincount(which, np.concatenate((rate, -rate)), len(edges)))
    count = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(edges))))
    return np.interp(at, edges, count)


def overlay(deltas: Sequence[DeltaReader], wanted: Extents) -> ChainMap:
    """The merged map of consecutive deltas, newest first: what they hold together of some parts."""
    taken = _Taken()
    left = wanted.total
    parts: list[tuple[Int64Array, Int64Array, Int64Array, int]] = []
    rows = [np.empty(0, INDEX_ROW)]
    before = 0
    for number, delta in enumerate(deltas):
        if left == 0:
            break
        mine = _rows_within(delta, wanted)
        if len(mine) == 0:
            continue
        low = mine["offset"].astype(np.int64)
        start, end, row = taken.without(*_cut(wanted, low, low + mine["length"].astype(np.int64)))
        taken.add(Extents.normal(start, end))
        left -= int((end - start).sum())
        parts.append((start, end, row + before, number))
        rows.append(mine)
        before += len(mine)
    return _merged(parts, np.concatenate(rows))


class _Taken:
    """Ranges of a disk that are added bit by bit, in sets of which each is smaller than the last.

    So adding to many does not copy all of them each time, and a few ranges are compared with all in
    a few searches.
    """

    def __init__(self) -> None:
        self._sets: list[Extents] = []

    def add(self, more: Extents) -> None:
        """Add ranges that are not in it."""
        while self._sets and len(self._sets[-1]) <= 2 * len(more):
            more = more.union(self._sets.pop())
        if len(more):
            self._sets.append(more)

    def without(
        self, start: Int64Array, end: Int64Array, row: Int64Array
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """What of some pieces (ascending, disjoint) is not in it: (start, end, row) of each."""
        for held in self._sets:
            first = np.searchsorted(held.end, start, side="right")
            count = np.searchsorted(held.start, end, side="left") - first
            piece = np.repeat(np.arange(len(start)), count + 1)
            nth = np.arange(len(piece)) - np.repeat(np.cumsum(count + 1) - count - 1, count + 1)
            at = first[piece] + nth
            low, high = start[piece], end[piece]
            after, until = nth > 0, nth < count[piece]
            low[after] = np.maximum(low[after], held.end[at[after] - 1])
            high[until] = np.minimum(high[until], held.start[at[until]])
            kept = high > low
            start, end, row = low[kept], high[kept], row[piece[kept]]
        return start, end, row


def _rows_within(delta: DeltaReader, wanted: Extents) -> IndexRows:
    if len(wanted) == 0:
        return np.empty(0, INDEX_ROW)
    return delta.rows_within(int(wanted.start[0]), int(wanted.end[0]))


def _merged(
    parts: list[tuple[Int64Array, Int64Array, Int64Array, int]], rows: IndexRows
) -> ChainMap:
    """The map of the pieces (start, end, row) that each delta (by its number) gives."""
    none = np.empty(0, np.int64)
    owner = np.concatenate(
        [np.empty(0, np.int32), *(np.full(len(part[0]), part[3], np.int32) for part in parts)]
    )
    start, end, row = (np.concatenate([none, *(part[i] for part in parts)]) for i in range(3))
    order = np.argsort(start, kind="stable")
    return ChainMap(start[order], end[order], owner[order], row[order], rows)


def _cut(
    visible: Extents, start: Int64Array, end: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The visible parts of index rows: (start, end, row) of each piece."""
    first = np.searchsorted(end, visible.start, side="right")
    last = np.searchsorted(start, visible.end, side="left")
    count = last - first
    piece = np.repeat(np.arange(len(visible)), count)
    row = np.repeat(first, count) + (
        np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    )
    low = np.maximum(visible.start[piece], start[row])
    high = np.minimum(visible.end[piece], end[row])
    return low, high, row.astype(np.int64)


def check_link(child: DeltaReader, parent: DeltaReader) -> None:
    """Check that a delta builds on exactly the state that another one ends in.

    Raises:
        DeltaError: it does not.
    """
    check_fit(child.header, parent.header, parent.footer.root.hex(), (child.where, parent.where))


def check_fit(child: Header, parent: Header, root: str, names: tuple[str, str]) -> None:
    """Check by headers that a delta builds on exactly the state that another one ends in.

    Args:
        child, parent: what they say of themselves.
        root: of the disk that the parent ends in, hexadecimal.
        names: of both files, for messages.

    Raises:
        DeltaError: it does not.
    """
    said, (name, other) = child.parent, names
    same_disk = (child.guest, child.disk, child.chain) == (parent.guest, parent.disk, parent.chain)
    if said is None or not same_disk or said.point != parent.point.id:
        raise DeltaError(f"does not build on {other}", where=name)
    if said.root != root or said.size != parent.size:
        raise DeltaError(f"builds on another state of the disk than {other} holds", where=name)
    shapes = child.geometry, parent.geometry
    if len({(g.leaf_size, g.fan_out, g.algorithm.name) for g in shapes}) != 1:
        raise DeltaError(f"its tree has another shape than {other}", where=name)
