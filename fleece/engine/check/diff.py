"""What changed of a disk between two points, by their trees alone: no data is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fleece.compare import TreeComparison
from fleece.store.catalogue import Catalogue, Entry
from fleece.tree import BlankDisk, NodeSource


@contextlib.contextmanager
def compare_points(
    catalogue: Catalogue, old: Entry | None, new: Entry | None
) -> Iterator[TreeComparison]:
    """Open two points of a disk and compare their trees.

    Args:
        catalogue: of the store.
        old, new: the disk's deltas at the points; None: the disk was not there, and counts as
            blank. One of them must be there.

    Raises:
        StoreError: a chain is broken or damaged.
        UsageError: the trees have different shapes.
    """
    with contextlib.ExitStack() as stack:
        chains = [
            None if entry is None else stack.enter_context(catalogue.chain(entry))
            for entry in (old, new)
        ]
        (shape, *_) = [chain.geometry for chain in chains if chain is not None]
        sides: list[NodeSource] = [chain or BlankDisk(shape) for chain in chains]
        yield TreeComparison(*sides)
