"""What a chain already holds, asked while its whole disk is read again.

When no bitmap tells what changed, the disk is read whole, and only those leaves are stored whose
hash is not the chain's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fleece.delta.chain import Chain
from fleece.disk.cache import Cache
from fleece.engine.leaves import Run
from fleece.extents import Extents
from fleece.hashing import Buffer
from fleece.tree import HashArray

_BLOCK = 1 << 12
"""Leaves whose hashes are looked up at a time: whole MiB of disk, whole nodes of any fan-out."""

_BLOCKS = 4


class HeldLeaves:
    """The leaves of a chain's disk, for reads that ask for them more or less in order.

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
        return zeros.subtract(self._zeros)

    def hashes(self, start: int, end: int) -> HashArray:
        """The chain's hashes of the leaves in `[start, end)`, a range within one MiB of the disk.

        Not for several threads at once.
        """
        size = self._shape.leaf_size
        low, high = start // size, -(-end // size)
        first = low - low % _BLOCK
        count = min(_BLOCK, -(-self._shape.size // size) - first)
        block = self._blocks.get(first, lambda: self._chain.leaf_hashes(first, count))
        return block[low - first : high - first]


def changed_runs(run: Run, held: HashArray, leaf_size: int, zero: bytes) -> Iterator[Run]:
    """The parts of a run whose leaves are not what the chain holds.

    Args:
        run: as it was read.
        held: uint8[n, hash size]: the chain's hashes of the run's leaves.
        leaf_size: in bytes.
        zero: the hash of a leaf of zeros.
    """
    width = len(zero)
    mine: Buffer = zero * len(held) if run.hashes is None else run.hashes
    differs = np.any(np.frombuffer(mine, np.uint8).reshape(-1, width) != held, axis=1)
    bounds = np.flatnonzero(np.diff(differs, prepend=False, append=False))
    for first, last in zip(bounds[::2].tolist(), bounds[1::2].tolist(), strict=True):
        start = first * leaf_size
        length = min(last * leaf_size, run.length) - start
        hashes = None if run.hashes is None else run.hashes[first * width : last * width]
        yield Run(run.offset + start, length, hashes)
