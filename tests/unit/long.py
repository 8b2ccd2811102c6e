"""A store with one long chain, made cheaply: its deltas are written straight into their places."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np

from fleece.delta.header import Mode, ParentRef, PointRef
from fleece.extents import Extents, Int64Array
from fleece.hashing import XXH3_128
from fleece.store.folder import FolderStore
from fleece.tree import Geometry, HashArray
from tests.unit.kit import LEAF, header, write_delta

FAN_OUT = 16
SIZE = FAN_OUT * LEAF
"""Of the disk: one node above its leaves."""
GUEST = "web"
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


class Known:
    """The disk's tree as it is now (`fleece.tree.NodeSource`), kept beside the disk."""

    def __init__(self, geometry: Geometry, disk: bytes) -> None:
        self.geometry = geometry
        self.top = b""
        self.disk = disk

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """The leaves of the one node."""
        assert (level, nodes.tolist()) == (1, [0])
        leaves = (self.disk[at : at + LEAF] for at in range(0, SIZE, LEAF))
        hashes = b"".join(XXH3_128.digest(leaf) for leaf in leaves)
        return np.frombuffer(hashes, np.uint8).reshape(1, FAN_OUT, -1)


def content(number: int, start: bytes = bytes(SIZE)) -> bytes:
    """The disk at the point of a number, from 1 on: each point writes one leaf after the other."""
    disk = bytearray(start)
    for step in range(max(1, number - FAN_OUT + 1), number + 1):
        leaf = step % FAN_OUT
        disk[leaf * LEAF : (leaf + 1) * LEAF] = step.to_bytes(4, "big") * (LEAF // 4)
    return bytes(disk)


def point_id(number: int) -> str:
    """The id of the point of a number."""
    return f"{number:010x}"


def fill(
    store: FolderStore, count: int, *, since: int = 0, disk: str = "vda", chain: str = ""
) -> None:
    """Give the guest `count` points, an hour apart, each but the first an incremental.

    Args:
        store: an empty one, or with `since` points.
        count: of the points afterwards.
        since: points that there are.
        disk: the disk's name.
        chain: the chain's id; else the store's own of this guest.
    """
    assert since == 0
    parent: ParentRef | None = None
    for number in range(1, count + 1):
        now = content(number)
        dirty = Extents.whole(SIZE)
        if parent is not None:
            leaf = number % FAN_OUT
            dirty = Extents.of([(leaf * LEAF, (leaf + 1) * LEAF)])
        head = dataclasses.replace(
            header(SIZE, number, parent, fan_out=FAN_OUT, disk=disk),
            chain=chain or store.chain_id(GUEST),
            point=PointRef(point_id(number), number, (BEGIN + timedelta(hours=number)).isoformat()),
            mode=Mode.FULL if parent is None else Mode.INCREMENTAL,
        )
        folder = store.path / GUEST / f"{number:06d}-{point_id(number)}"
        folder.mkdir(parents=True)
        with (folder / f"{disk}.fleece").open("wb") as sink:
            summary, _ = write_delta(sink, head, Known(head.geometry, now), now, dirty)
        parent = ParentRef(point_id(number), summary.root.hex(), SIZE)
