"""The hash tree of a disk: leaves of 64 KiB, inner nodes of a fixed fan-out, one root.

The whole disk at a point has one tree. A delta holds the nodes that its changes touched, each with
its full list of children; a node that it does not hold is in an older delta, or is all zeros
(docs/internals/format.rst, "The tree"). Everything here is pure: bytes and arrays in,
hashes and arrays out.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fleece.extents import Extents, Int64Array
from fleece.hashing import XXH3_128, Buffer, HashAlgorithm
from fleece.ordered import distinct

LEAF_SIZE = 64 * 1024
"""Bytes of disk under one leaf."""

FAN_OUT = 16
"""Children of an inner node (docs/internals/format.rst tells why 16)."""

HashArray = npt.NDArray[np.uint8]
"""uint8[n, hash size] (or [n, fan-out, hash size] for lists of children)."""

_NODE_TAG = b"fleece-node"
_ROOT_TAG = b"fleece-root"


@dataclass(frozen=True)
class Geometry:
    """All that a tree's shape and hashes depend on, besides the data.

    Attributes:
        size: the disk's size in bytes, any value >= 0.
        leaf_size: bytes under one leaf; the last leaf is padded with zeros for hashing.
        fan_out: children of an inner node.
        algorithm: the hash of leaves, nodes and root.
    """

    size: int
    leaf_size: int = LEAF_SIZE
    fan_out: int = FAN_OUT
    algorithm: HashAlgorithm = XXH3_128

    @property
    def leaves(self) -> int:
        """The number of leaves that the disk's size needs."""
        return -(-self.size // self.leaf_size)

    @cached_property
    def height(self) -> int:
        """The level of the top node; leaves are level 0. A disk of one leaf has height 0."""
        level, reach = 0, 1
        while reach < self.leaves:
            level, reach = level + 1, reach * self.fan_out
        return level

    @cached_property
    def zeros(self) -> tuple[bytes, ...]:
        """For each level from 0 to `height`, the hash of a node over nothing but zeros."""
        chain = [self.algorithm.digest(bytes(self.leaf_size))]
        for level in range(1, self.height + 1):
            chain.append(self.node(level, chain[-1] * self.fan_out))
        return tuple(chain)

    def node(self, level: int, children: bytes) -> bytes:
        """The hash of the inner node at `level` (>= 1) over its children's hashes, joined."""
        return self.algorithm.digest(_NODE_TAG + bytes((level,)) + children)

    def root(self, top: bytes) -> bytes:
        """The root: the top node bound to the disk's size and to the tree's shape."""
        shape = struct.pack("<IIQ", self.leaf_size, self.fan_out, self.size)
        name = self.algorithm.name.encode().ljust(16, b"\0")
        return self.algorithm.digest(_ROOT_TAG + name + shape + top)

    def zero_hashes(self, level: int, count: int) -> HashArray:
        """uint8[count, hash size]: the all-zero hash of a level, repeated."""
        one = np.frombuffer(self.zeros[level], np.uint8)
        return np.broadcast_to(one, (count, self.algorithm.size))


class Run(NamedTuple):
    """Consecutive leaves that are all data or all zero. A disk may have millions.

    Attributes:
        offset, length: in bytes; the last leaf of the disk may be short.
        hashes: of its leaves, joined; None: it is zeros.
    """

    offset: int
    length: int
    hashes: bytes | None


class LeafHasher:
    """Cuts buffers into runs. Holds no state between calls; share it between threads."""

    def __init__(self, geometry: Geometry) -> None:
        self._size = geometry.leaf_size
        self._digest = geometry.algorithm.digest
        self._blank = bytes(geometry.leaf_size)

    def runs(self, offset: int, data: Buffer) -> Iterator[Run]:
        """The runs of a buffer that begins at a leaf and ends at one or at the disk's end."""
        view = memoryview(data)
        size, blank, digest = self._size, self._blank, self._digest
        start = 0
        hashes: list[bytes] = []
        zero = False
        for at in range(0, len(view), size):
            leaf = view[at : at + size]
            # The fastest test there is: memcmp against a constant, ending at the first difference.
            is_zero = blank.startswith(leaf)
            if at > start and is_zero != zero:
                yield Run(offset + start, at - start, None if zero else b"".join(hashes))
                start, hashes = at, []
            zero = is_zero
            if not is_zero:
                whole = leaf if len(leaf) == size else _padded(leaf, size)
                hashes.append(digest(whole))
        if len(view) > start:
            end = len(view) - start
            yield Run(offset + start, end, None if zero else b"".join(hashes))


def changed_runs(run: Run, held: HashArray, geometry: Geometry) -> Iterator[Run]:
    """The parts of a run whose leaves are not what a chain holds.

    Args:
        run: as it was read.
        held: uint8[n, hash size]: the chain's hashes of the run's leaves.
        geometry: of the disk.
    """
    size, width = geometry.leaf_size, geometry.algorithm.size
    mine: Buffer = geometry.zeros[0] * len(held) if run.hashes is None else run.hashes
    differs = np.any(np.frombuffer(mine, np.uint8).reshape(held.shape) != held, axis=1)
    bounds = np.flatnonzero(np.diff(differs, prepend=False, append=False))
    for first, last in zip(bounds[::2].tolist(), bounds[1::2].tolist(), strict=True):
        start = first * size
        length = min(last * size, run.length) - start
        hashes = None if run.hashes is None else run.hashes[first * width : last * width]
        yield Run(run.offset + start, length, hashes)


def leaf_hashes(data: Buffer, geometry: Geometry) -> bytes:
    """The hashes of consecutive leaves, joined; a short last leaf is padded with zeros."""
    size, digest = geometry.leaf_size, geometry.algorithm.digest
    view = memoryview(data)
    whole = len(view) // size * size
    hashes = [digest(view[at : at + size]) for at in range(0, whole, size)]
    if whole < len(view):
        hashes.append(digest(_padded(view[whole:], size)))
    return b"".join(hashes)


def _padded(leaf: memoryview, size: int) -> bytes:
    """The disk's last leaf, which may be short, as it is hashed."""
    return bytes(leaf).ljust(size, b"\0")


class NodeSource(Protocol):
    """Where the nodes that a change did not touch come from: the chain so far."""

    @property
    def geometry(self) -> Geometry:
        """The geometry of the disk at the newest point of that chain."""

    @property
    def top(self) -> bytes:
        """The hash of the top node at the newest point of that chain."""

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """uint8[n, fan-out, hash size]: the children of the nodes of a level (>= 1), sorted."""


@dataclass(frozen=True)
class Level:
    """The touched inner nodes of one level.

    Attributes:
        level: 1 is just above the leaves.
        nodes: int64[n], ascending: the nodes' numbers within the level.
        children: uint8[n, fan-out, hash size].
    """

    level: int
    nodes: Int64Array
    children: HashArray


_LOOK = 1 << 16
"""Touched nodes whose siblings are looked up in the base together."""

_Nodes = tuple[Int64Array, HashArray]
"""(int64[n] numbers of nodes of one level, uint8[n, hash size] their hashes)."""

NodeWindow = tuple[int, Int64Array, HashArray]
"""(number of the window, int64[n] numbers of nodes, uint8[n, hash size] their hashes)."""


class NodeSpool(Protocol):
    """Hashes of nodes of one level, or of leaves, gathered in any order.

    It is asked for its windows once.
    """

    @property
    def span(self) -> int:
        """Nodes in a window, a multiple of the fan-out: a window holds all children of a node."""

    def add(self, numbers: Int64Array, hashes: HashArray) -> None:
        """Take in nodes, each of which comes once: int64[n], uint8[n, hash size]."""

    def windows(self) -> Iterator[NodeWindow]:
        """The windows that hold nodes, and these in them, by ascending number."""


@dataclass(frozen=True)
class Tree:
    """The touched part of a disk's tree, and its root.

    Attributes:
        levels: from level 1 up; a level without touched nodes is left out.
        top: the hash of the top node.
        root: the hash that names the whole disk.
    """

    levels: tuple[Level, ...]
    top: bytes
    root: bytes


def seen_as(base: NodeSource, geometry: Geometry) -> NodeSource:
    """A disk's nodes as parents of a disk that may have another size."""
    return base if base.geometry.size == geometry.size else _Resized(base, geometry)


class _Resized:
    """The nodes of a disk as those of one of another size: what is past either end is zeros.

    Only for nodes whose child that reaches past the smaller end, and whose child that is higher
    than the smaller tree, are touched: of them it knows nothing. `Header.covers_from` sees to that.
    """

    def __init__(self, base: NodeSource, geometry: Geometry) -> None:
        self._base = base
        self._geometry = geometry

    @property
    def geometry(self) -> Geometry:
        """Of the disk that is wanted."""
        return self._geometry

    @property
    def top(self) -> bytes:
        """The all-zero hash: a disk of which no node is touched has no bytes."""
        return self._geometry.zeros[self._geometry.height]

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """The children that both disks have; zeros for the others."""
        shape, held = self._geometry, self._base.geometry
        span = shape.fan_out ** (level - 1)
        blank = shape.zero_hashes(level - 1, len(nodes) * shape.fan_out)
        result: HashArray = blank.reshape(len(nodes), shape.fan_out, -1).copy()
        if level <= held.height:
            there = nodes < -(-held.leaves // (span * shape.fan_out))
            result[there] = self._base.children(level, nodes[there])
        number = nodes[:, None] * shape.fan_out + np.arange(shape.fan_out)
        result[number * span >= min(shape.leaves, held.leaves)] = shape.zero_hashes(level - 1, 1)
        return result


class BlankDisk:
    """The node source of a chain's first delta: before it, the disk is all zeros."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    @property
    def geometry(self) -> Geometry:
        """The geometry of the disk that is about to be described."""
        return self._geometry

    @property
    def top(self) -> bytes:
        """The all-zero hash of the top level."""
        return self._geometry.zeros[self._geometry.height]

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """All-zero children for every node."""
        shape = self._geometry
        flat = shape.zero_hashes(level - 1, len(nodes) * shape.fan_out)
        return flat.reshape(len(nodes), shape.fan_out, shape.algorithm.size)


def joined(runs: Iterable[tuple[int, bytes]], size: int) -> tuple[Int64Array, HashArray]:
    """Runs of leaf hashes, in any order, as the sorted arrays that `build` takes.

    Args:
        runs: (number of the first leaf, hashes of consecutive leaves joined).
        size: the length of one hash in bytes.
    """
    ordered = sorted(runs)
    if not ordered:
        return np.empty(0, np.int64), np.empty((0, size), np.uint8)
    first = np.array([run[0] for run in ordered], np.int64)
    count = np.array([len(run[1]) // size for run in ordered], np.int64)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    hashes = np.frombuffer(b"".join(run[1] for run in ordered), np.uint8).reshape(-1, size)
    return np.repeat(first, count) + within, hashes


class Growing:
    """The touched nodes and the root, computed level by level in time of what changed.

    Memory: a window of each level that is in work, and what the spools keep.

    Args:
        geometry: of the disk now; same leaf size, fan-out, hash and size as the base's.
        leaves: the leaves that hold data and changed, and their hashes.
        zeros: leaves that became zero, in leaf numbers, disjoint from `leaves`.
        base: the disk before the change.
        spool: makes an empty one.

    Attributes:
        top: the hash of the top node, when all of `levels` has been taken.
    """

    def __init__(
        self,
        geometry: Geometry,
        leaves: NodeSpool,
        zeros: Extents,
        base: NodeSource,
        spool: Callable[[], NodeSpool],
    ) -> None:
        self._geometry = geometry
        self._leaves = leaves
        self._zeros = zeros
        self._base = base
        self._spool = spool
        self.top = b""

    @property
    def root(self) -> bytes:
        """The hash that names the whole disk, when all of `levels` has been taken."""
        return self._geometry.root(self.top)

    def levels(self) -> Iterator[Level]:
        """The touched nodes from level 1 up; of a level some at a time, by ascending number."""
        geometry, below, spans = self._geometry, self._leaves, self._zeros
        for level in range(1, geometry.height + 1):
            above = self._spool()
            for touched, current in _together(_windows(geometry, level - 1, below, spans)):
                done = _raise(geometry, level, touched, current, self._base)
                yield done
                above.add(done.nodes, _node_hashes(geometry, done))
            below = above
            fan = geometry.fan_out
            spans = Extents.normal(-(-spans.start // fan), spans.end // fan)
        self.top = _top(geometry, below, spans, self._base)


class _Held:
    """The spool of a tree that fits into memory: all is one window."""

    span = 1 << 62

    def __init__(self) -> None:
        self._parts: list[tuple[Int64Array, HashArray]] = []

    def add(self, numbers: Int64Array, hashes: HashArray) -> None:
        """Take nodes in."""
        if len(numbers):
            self._parts.append((numbers, hashes))

    def windows(self) -> Iterator[NodeWindow]:
        """All of them."""
        if self._parts:
            numbers = np.concatenate([part[0] for part in self._parts])
            order = np.argsort(numbers, kind="stable")
            yield 0, numbers[order], np.concatenate([part[1] for part in self._parts])[order]


def build(
    geometry: Geometry, leaves: Int64Array, hashes: HashArray, zeros: Extents, base: NodeSource
) -> Tree:
    """Compute the touched nodes and the root, in time and memory of what changed.

    Args:
        geometry: of the disk now; same leaf size, fan-out, hash and size as the base's.
        leaves: int64[n], ascending: numbers of the leaves that hold data and changed.
        hashes: uint8[n, hash size]: their hashes.
        zeros: leaves that became zero, in leaf numbers, disjoint from `leaves`.
        base: the disk before the change.
    """
    held = _Held()
    held.add(leaves, hashes)
    growing = Growing(geometry, held, zeros, base, _Held)
    levels = tuple(growing.levels())
    return Tree(levels, growing.top, growing.root)


def _windows(geometry: Geometry, level: int, spool: NodeSpool, spans: Extents) -> Iterator[_Nodes]:
    """The touched nodes of a level, window by window, the ragged ends of zero spans among them.

    A span's ragged ends are those of its nodes whose parents it does not fill.
    """
    none = np.empty(0, np.int64), np.empty((0, geometry.algorithm.size), np.uint8)
    ends = np.concatenate((spans.start, spans.end - 1)) // spool.span
    edges = ((number, *none) for number in distinct(ends).tolist())
    merged = heapq.merge(spool.windows(), edges, key=lambda window: window[0])
    for number, same in itertools.groupby(merged, key=lambda window: window[0]):
        _, touched, current = next(same)
        inside = spans.clip(number * spool.span, (number + 1) * spool.span)
        touched, current = _with_ragged(geometry, level, touched, current, inside)
        if len(touched):
            yield touched, current


def _together(windows: Iterator[_Nodes]) -> Iterator[_Nodes]:
    """Windows in which little was touched, joined: each look at a deep base costs the same."""
    parts: list[_Nodes] = []
    count = 0
    for window in windows:
        if count + len(window[0]) > _LOOK:
            yield from _joined(parts)
            parts, count = [], 0
        parts.append(window)
        count += len(window[0])
    yield from _joined(parts)


def _joined(parts: list[_Nodes]) -> Iterator[_Nodes]:
    if parts:
        yield np.concatenate([part[0] for part in parts]), np.concatenate([p[1] for p in parts])


def _with_ragged(
    geometry: Geometry, level: int, touched: Int64Array, current: HashArray, spans: Extents
) -> tuple[Int64Array, HashArray]:
    fan = geometry.fan_out
    filled = Extents.normal(-(-spans.start // fan) * fan, spans.end // fan * fan)
    ragged = spans.subtract(filled)
    if len(ragged) == 0:
        return touched, current
    ends, _ = ragged.split(1)
    number = np.concatenate((touched, ends))
    value = np.concatenate((current, geometry.zero_hashes(level, len(ends))))
    order = np.argsort(number, kind="stable")
    return number[order], value[order]


def _raise(
    geometry: Geometry, level: int, touched: Int64Array, current: HashArray, base: NodeSource
) -> Level:
    """The parents of the touched nodes, their other children taken from the base."""
    parent = touched // geometry.fan_out
    nodes = distinct(parent)
    children = np.array(base.children(level, nodes), np.uint8)
    children[np.searchsorted(nodes, parent), touched % geometry.fan_out] = current
    return Level(level, nodes, children)


def _node_hashes(geometry: Geometry, level: Level) -> HashArray:
    width = geometry.fan_out * geometry.algorithm.size
    flat = level.children.tobytes()
    digests = b"".join(
        geometry.node(level.level, flat[at : at + width]) for at in range(0, len(flat), width)
    )
    return np.frombuffer(digests, np.uint8).reshape(-1, geometry.algorithm.size)


def _top(geometry: Geometry, tops: NodeSpool, spans: Extents, base: NodeSource) -> bytes:
    """The hash of the top node: touched, zeroed as a whole, or unchanged."""
    for _, _, current in tops.windows():
        return bytes(current[0].tobytes())
    if len(spans):
        return geometry.zeros[geometry.height]
    return base.top


def dense_parents(geometry: Geometry, level: int, hashes: HashArray) -> HashArray:
    """The hashes of all nodes of a level, from those of all their children.

    Args:
        geometry: of the disk.
        level: of the nodes wanted, >= 1.
        hashes: uint8[n, hash size]: of consecutive nodes of the level below, from a multiple of
            the fan-out on; what is missing at the end is past the disk and counts as zeros.
    """
    short = -len(hashes) % geometry.fan_out
    padded = np.concatenate((hashes, geometry.zero_hashes(level - 1, short)))
    children = padded.reshape(-1, geometry.fan_out, geometry.algorithm.size)
    # Most of a large disk is zeros, and to compare is cheaper than to hash.
    blank = geometry.zero_hashes(level - 1, geometry.fan_out).reshape(1, -1)
    differs = padded.reshape(len(children), -1).view(np.uint64) != blank.view(np.uint64)
    busy = np.flatnonzero(np.any(differs, axis=1))
    result: HashArray = geometry.zero_hashes(level, len(children)).copy()
    result[busy] = _node_hashes(geometry, Level(level, busy, children[busy]))
    return result
