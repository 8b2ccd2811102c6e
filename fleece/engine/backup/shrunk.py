"""Find out that a disk was shrunk and grown back to its old size since a point.

QEMU does not tell: of a dirty bitmap it drops the bits past the end when the disk shrinks, and
marks nothing when it grows (seen on 7.2, with block_resize and with qemu-img resize). What was cut
off reads as zeros then, and counts as unchanged.

But a disk is cut from its end, and so one leaf tells: the last one that is said to be unchanged and
holds data in the chain. If the disk was ever cut before that leaf, the leaf is zeros now; if it was
cut in it, the leaf is what it was only if zeros were cut; if it was cut behind it, all unchanged
leaves that were cut held zeros in the chain, and do again. Whatever was written since is dirty.
"""

from __future__ import annotations

import numpy as np

from fleece.delta.chain import Chain, steps
from fleece.disk.base import ReadableDisk
from fleece.extents import Extents, Int64Array
from fleece.tree import HashArray, leaf_hashes

_TOGETHER = 256
"""Leaves that are looked at together. A record of data may hold leaves of zeros; few do."""


def cut_at(chain: Chain, disk: ReadableDisk, dirty: Extents) -> int | None:
    """Where a leaf is not what it is said to be because the disk was cut; None: nowhere.

    Reads one leaf of the disk, and of the chain's index what lies behind that leaf.

    Args:
        chain: the disk at the parent.
        disk: as it is now.
        dirty: the whole leaves that changed since, as it is said. If the disk has another size now,
            they hold all from `Header.covers_from` on.

    Returns:
        The offset of the leaf in bytes. If it is None, every leaf that is not dirty is what it was.
    """
    shape = chain.geometry
    both = min(shape.size, disk.size)
    found = _last_with_data(chain, Extents.whole(both).subtract(dirty))
    if found is None:
        return None
    leaf, said = found
    start = leaf * shape.leaf_size
    with disk.reader() as reader:
        data = bytes(reader.read(start, min(shape.leaf_size, disk.size - start)))
    return None if leaf_hashes(data, shape) == said else start


def _last_with_data(chain: Chain, clean: Extents) -> tuple[int, bytes] | None:
    """The number and the hash of the last leaf of a set that is not zeros in the chain."""
    for low, high in reversed([*steps(chain.deltas)]):
        near = clean.clip(low, high)
        if len(near) == 0:
            continue
        held = chain.map(low, high).extents(zero=False).intersect(near)
        starts, _ = held.split(chain.geometry.leaf_size)
        numbers = starts // chain.geometry.leaf_size
        for end in range(len(numbers), 0, -_TOGETHER):
            some = numbers[max(0, end - _TOGETHER) : end]
            hashes = _hashes(chain, some)
            data = np.flatnonzero(np.any(hashes != chain.geometry.zero_hashes(0, 1), axis=1))
            if len(data):
                return int(some[data[-1]]), hashes[data[-1]].tobytes()
    return None


def _hashes(chain: Chain, leaves: Int64Array) -> HashArray:
    """uint8[n, hash size]: the chain's hashes of leaves (ascending)."""
    shape = chain.geometry
    if shape.height == 0:
        return chain.leaf_hashes(0, 1)
    nodes, at = np.unique(leaves // shape.fan_out, return_inverse=True)
    return chain.children(1, nodes)[at, leaves % shape.fan_out]
