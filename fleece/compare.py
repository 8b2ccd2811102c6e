"""Compare two trees by descending only where they differ: time and memory of what differs.

Works on any two node sources (`fleece.tree.NodeSource`), such as two points of one chain, or of
different chains. The disks may differ in size, because leaves past the end count as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fleece.errors import UsageError
from fleece.extents import Extents, Int64Array
from fleece.tree import Geometry, HashArray, NodeSource

_BATCH = 4096
"""Nodes whose children are fetched at a time: bounds the memory, whatever differs."""


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one level whose hashes differ between the two sides.

    Attributes:
        level: of the nodes.
        numbers: int64[n], ascending.
        sides: for each side uint8[n, hash size], the nodes' hashes.
    """

    level: int
    numbers: Int64Array
    sides: tuple[HashArray, HashArray]


class _Side:
    """One tree, seen as if its disk were as large as the larger one of both."""

    def __init__(self, source: NodeSource, height: int) -> None:
        self._source = source
        self._own = source.geometry
        self._shape = Geometry(
            self._own.leaf_size * self._own.fan_out**height,
            self._own.leaf_size,
            self._own.fan_out,
            self._own.algorithm,
        )
        self._tops = [np.frombuffer(source.top, np.uint8)]
        for level in range(self._own.height + 1, height + 1):
            blank = self._shape.zeros[level - 1] * (self._own.fan_out - 1)
            above = self._shape.node(level, self._tops[-1].tobytes() + blank)
            self._tops.append(np.frombuffer(above, np.uint8))
        self.fetched = 0

    @property
    def top(self) -> HashArray:
        """uint8[1, hash size]: the hash of the top node."""
        return self._tops[-1].reshape(1, -1)

    def children(self, level: int, numbers: Int64Array, hashes: HashArray) -> HashArray:
        """The children of nodes with these hashes; of an all-zero node they are known."""
        fan, size = self._own.fan_out, self._own.algorithm.size
        blank = self._shape.zero_hashes(level - 1, len(numbers) * fan)
        result: HashArray = blank.reshape(len(numbers), fan, size).copy()
        zero = np.frombuffer(self._shape.zeros[level], np.uint8)
        wanted = np.flatnonzero(np.any(hashes != zero, axis=1))
        if len(wanted) == 0:
            return result
        if level > self._own.height:
            result[wanted[0], 0] = self._tops[level - 1 - self._own.height]
            return result
        self.fetched += len(wanted)
        result[wanted] = self._source.children(level, numbers[wanted])
        return result


class TreeComparison:
    """A walk down two trees.

    Args:
        old, new: the trees; leaf size, fan-out and hash must be the same.

    Attributes:
        fetched: nodes that were looked up in either tree so far.

    Raises:
        UsageError: the trees have different shapes.
    """

    def __init__(self, old: NodeSource, new: NodeSource) -> None:
        shapes = old.geometry, new.geometry
        if len({(g.leaf_size, g.fan_out, g.algorithm.name) for g in shapes}) != 1:
            raise UsageError(
                "the trees have different leaf sizes, fan-outs or hashes",
                hint="restore both and compare the images",
            )
        self.size = max(shape.size for shape in shapes)
        self._shape = shapes[0]
        self._height = max(shape.height for shape in shapes)
        self._sides = _Side(old, self._height), _Side(new, self._height)

    @property
    def fetched(self) -> int:
        """Nodes that were looked up in either tree so far."""
        return sum(side.fetched for side in self._sides)

    def __iter__(self) -> Iterator[Extents]:
        """What differs, in whole leaves (bytes of disk), piece by piece in order of the disk.

        Raises:
            DeltaError: a tree page is damaged.
        """
        left, right = (side.top for side in self._sides)
        stack = [_Nodes(self._height, np.zeros(1, np.int64), (left, right))]
        if np.array_equal(left, right):
            return
        while stack:
            nodes = stack.pop()
            if nodes.level == 0:
                yield self._bytes(nodes.numbers)
            else:
                below = self._below(nodes)
                stack.extend(reversed([*_batches(below)]))

    def ranges(self) -> Iterator[tuple[int, int]]:
        """What differs as (start, end) in bytes of disk, in order, ranges that touch joined."""
        held: tuple[int, int] | None = None
        for part in self:
            for start, end in part:
                if held is not None and held[1] == start:
                    held = held[0], end
                    continue
                if held is not None:
                    yield held
                held = start, end
        if held is not None:
            yield held

    def _below(self, nodes: _Nodes) -> _Nodes:
        """The children that differ."""
        size, fan = self._shape.algorithm.size, self._shape.fan_out
        old, new = (
            side.children(nodes.level, nodes.numbers, hashes).reshape(-1, size)
            for side, hashes in zip(self._sides, nodes.sides, strict=True)
        )
        wrong = np.flatnonzero(np.any(old != new, axis=1))
        numbers = nodes.numbers[wrong // fan] * fan + wrong % fan
        return _Nodes(nodes.level - 1, numbers, (old[wrong], new[wrong]))

    def _bytes(self, leaves: Int64Array) -> Extents:
        start = leaves * self._shape.leaf_size
        return Extents.normal(start, np.minimum(start + self._shape.leaf_size, self.size))


def _batches(nodes: _Nodes) -> Iterator[_Nodes]:
    old, new = nodes.sides
    for at in range(0, len(nodes.numbers), _BATCH):
        part = slice(at, at + _BATCH)
        yield _Nodes(nodes.level, nodes.numbers[part], (old[part], new[part]))
