"""Hash every leaf of a disk, region by region, in memory that does not grow with the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.base import ReadableDisk
from fleece.engine.work.pool import Counter, run_workers
from fleece.engine.work.reads import ReadItem, known_zeros, read_items
from fleece.extents import Extents
from fleece.tree import Geometry, HashArray, LeafHasher, dense_parents

REGION_LEVEL = 4
"""A region is the disk under one node of this level: 4 GiB with 64 KiB leaves and fan-out 16."""


@dataclass(frozen=True)
class Region:
    """The hashes of consecutive leaves.

    Attributes:
        first: number of the first leaf.
        hashes: uint8[n, hash size]; None: all of them are zeros.
        leaves: n.
    """

    first: int
    hashes: HashArray | None
    leaves: int


def regions(
    disk: ReadableDisk, geometry: Geometry, counter: Counter, cancel: CancelToken
) -> Iterator[Region]:
    """Read a disk and give its leaf hashes, a region at a time, in order."""
    span = geometry.leaf_size * geometry.fan_out**REGION_LEVEL
    for start in range(0, geometry.size, span):
        cancel.check()
        end = min(start + span, geometry.size)
        yield _region(disk, geometry, start, end, counter, cancel)


def _region(
    disk: ReadableDisk,
    geometry: Geometry,
    start: int,
    end: int,
    counter: Counter,
    cancel: CancelToken,
) -> Region:
    first = start // geometry.leaf_size
    count = -(-(end - start) // geometry.leaf_size)
    whole = Extents.of([(start, end)])
    wanted = whole.subtract(known_zeros(disk, whole, geometry.leaf_size))
    counter.skip(end - start - wanted.total)
    if len(wanted) == 0:
        return Region(first, None, count)
    hashes = geometry.zero_hashes(0, count).copy()
    hasher = LeafHasher(geometry)

    def work(items: Iterator[ReadItem]) -> None:
        with disk.reader() as reader:
            for item in items:
                data = reader.read(item.start, item.length)
                for run in hasher.runs(item.start, data):
                    if run.hashes is not None:
                        at = run.offset // geometry.leaf_size - first
                        raw = np.frombuffer(run.hashes, np.uint8)
                        found = raw.reshape(-1, geometry.algorithm.size)
                        hashes[at : at + len(found)] = found
                counter.add(sum(stop - begin for begin, stop in item.wanted))

    run_workers(read_items(wanted), work, cancel)
    return Region(first, hashes, count)


def root_of(regions_of_disk: Iterator[Region], geometry: Geometry) -> bytes:
    """The root of a disk from the regions of all its leaves."""
    return root_from((region_top(region, geometry) for region in regions_of_disk), geometry)


def root_from(tops: Iterable[bytes], geometry: Geometry) -> bytes:
    """The same from what `region_top` gives for each."""
    level = min(REGION_LEVEL, geometry.height)
    hashes = np.frombuffer(b"".join(tops), np.uint8).reshape(-1, geometry.algorithm.size)
    for above in range(level + 1, geometry.height + 1):
        hashes = dense_parents(geometry, above, hashes)
    top = hashes[0].tobytes() if len(hashes) else geometry.zeros[geometry.height]
    return geometry.root(top)


def region_top(region: Region, geometry: Geometry) -> bytes:
    """The hash of the node above a region; of a disk that is no larger, of its top node."""
    level = min(REGION_LEVEL, geometry.height)
    if region.hashes is None:
        return geometry.zeros[level]
    hashes = region.hashes
    for above in range(1, level + 1):
        hashes = dense_parents(geometry, above, hashes)
    return bytes(hashes[0].tobytes())


def disk_root(
    disk: ReadableDisk,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    geometry: Geometry | None = None,
    proven: str | None = None,
) -> bytes:
    """The root of an open disk.

    Args:
        disk: to read, whole.
        listener: hears `Progress`.
        cancel: stops it.
        geometry: the tree's shape; None: the default shape for the disk's size.
        proven: the name of the disk of which this proves that it was restored; None: of none.
    """
    shape = geometry or Geometry(disk.size)
    phase = events.Phase.ROOT if proven is None else events.Phase.PROOF
    counter = Counter(listener, phase, proven or disk.where, disk.size)
    return root_of(regions(disk, shape, counter, cancel or CancelToken()), shape)
