"""What a chain already holds, asked while its whole disk is read again.

When no bitmap tells what changed, the disk is read whole, and only those leaves are stored whose
hash is not the chain's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from fleece.cache import Cache
from fleece.delta.chain import Chain
from fleece.engine.work.reads import ReadItem
from fleece.extents import Extents, Int64Array
from fleece.tree import HashArray

_BLOCK = 1 << 12
"""Leaves whose hashes are looked up at a time: whole nodes of any fan-out."""

_BLOCKS = 4

_TOGETHER = 1 << 8
"""Reads whose leaves' hashes are looked up together: a look through 50 deltas costs the same for
one node of the tree as for hundreds."""


class HeldLeaves:
    """The leaves of a chain's disk, for reads that come more or less in order of the disk.

    Args:
        chain: the disk at the parent.
        end: from here on, in bytes, the chain does not count (`Header.covers_from`); None: all
            of it does.

    Attributes:
        end: of what may be asked for.
    """

    def __init__(self, chain: Chain, end: int | None = None) -> None:
        self.end = chain.geometry.size if end is None else end
        self._chain = chain
        self._shape = chain.geometry
        zeros = Extents.joined([part.extents(zero=True) for part in chain.maps()])
        whole = zeros.align_in(self._shape.leaf_size, self._shape.size)
        self._zeros = whole.clip(0, self.end)
        self._blocks: Cache[HashArray] = Cache(_BLOCKS)

    def not_yet_zero(self, zeros: Extents) -> Extents:
        """The part of ranges that read as zeros now (whole leaves) that the chain does not hold so.

        A leaf that the chain may or may not hold as zeros counts as one that it does not.
        """
        if len(zeros) == 0:
            return zeros
        near = self._zeros.clip(int(zeros.start[0]), int(zeros.end[-1]))
        return zeros.subtract(near)

    def beside(self, items: Iterator[ReadItem]) -> Iterator[tuple[ReadItem, HashArray]]:
        """Reads in order of the disk, and for each the chain's hashes of its leaves."""
        size, fan_out = self._shape.leaf_size, self._shape.fan_out
        while batch := list(itertools.islice(items, _TOGETHER)):
            low = np.array([item.start for item in batch], np.int64) // size
            high = -(-np.array([item.end for item in batch], np.int64) // size)
            wanted = Extents.normal(low // fan_out, -(-high // fan_out))
            nodes = np.concatenate([np.arange(start, end) for start, end in wanted])
            hashes = self._under(nodes)
            at = np.searchsorted(nodes, low // fan_out) * fan_out + low % fan_out
            for item, first, count in zip(batch, at.tolist(), (high - low).tolist(), strict=True):
                yield item, hashes[first : first + count]

    def _under(self, nodes: Int64Array) -> HashArray:
        """uint8[n * fan-out, hash size]: the leaves' hashes under lowest nodes (ascending)."""
        if self._shape.height == 0:
            return self._chain.leaf_hashes(0, 1)
        return self._chain.children(1, nodes).reshape(-1, self._shape.algorithm.size)

    def hashes(self, start: int, end: int) -> HashArray:
        """The chain's hashes of the leaves in `[start, end)`, for ranges that come one by one.

        Not for several threads at once.
        """
        size = self._shape.leaf_size
        low, high = start // size, -(-end // size)
        parts = [
            self._block(first)[max(low - first, 0) : high - first]
            for first in range(low - low % _BLOCK, high, _BLOCK)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, first: int) -> HashArray:
        count = min(_BLOCK, self._shape.leaves - first)
        return self._blocks.get(first, lambda: self._chain.leaf_hashes(first, count))
