"""Parts of the machine out of their chains, in memory."""

from __future__ import annotations

import numpy as np

from fleece.delta.chain import Chain
from fleece.delta.part import LARGEST, Part
from fleece.disk.chain import ChainDisk
from fleece.engine.work.scan import Region, root_of
from fleece.errors import StoreError, UsageError, VerifyError
from fleece.store.catalogue import Catalogue, StoredPoint
from fleece.store.store import Store
from fleece.tree import Geometry, leaf_hashes


def parts(store: Store, point: str, guest: str | None = None) -> tuple[Part, ...]:
    """The parts of the machine at a point, each proven by its root.

    What they say was made by who could write the store: it is to be looked at before it is used.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        guest: which guest, if `point` could mean several.

    Raises:
        StoreError: the point is not there, its chain is damaged, or a part is too large.
        VerifyError: a part has not the point's root.
    """
    catalogue = store.catalogue()
    return parts_of(catalogue, catalogue.find(point, guest))


def parts_of(catalogue: Catalogue, point: StoredPoint) -> tuple[Part, ...]:
    """The same of a point of a catalogue."""
    found = []
    for _, entry in sorted(point.parts.items()):
        with catalogue.chain(entry) as chain:
            found.append(read_part(chain))
    return tuple(found)


def read_part(chain: Chain) -> Part:
    """The part at a chain's newest point, proven by its root.

    Raises:
        UsageError: the chain is a disk's.
        StoreError: it is damaged, or larger than `LARGEST`.
        VerifyError: what was read has another root.
    """
    head, where = chain.deltas[0].header, chain.deltas[0].where
    if head.part is None:
        raise UsageError("is of a disk, and not of a part of the machine", where=where)
    if head.size > LARGEST:
        raise StoreError(f"has {head.size} bytes, more than a part of a machine may", where=where)
    data = bytes(ChainDisk(chain).read(0, head.size)) if head.size else b""
    root = _root(data, chain.geometry)
    if root != chain.root:
        raise VerifyError(
            f"what was read has root {root.hex()}, the point has another", where=where
        )
    return Part(head.part, data)


def _root(data: bytes, shape: Geometry) -> bytes:
    hashes = np.frombuffer(leaf_hashes(data, shape), np.uint8).reshape(-1, shape.algorithm.size)
    return root_of(iter([Region(0, hashes, len(hashes))] if data else []), shape)
