"""A store with one long chain, made cheaply: its deltas are written straight into their places."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import zstandard

from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.writer import DeltaWriter
from fleece.extents import Int64Array
from fleece.hashing import XXH3_128
from fleece.store.names import safe_name
from fleece.store.store import Store
from fleece.tree import LEAF_SIZE, Geometry, HashArray

LEAVES = 16
"""Of the disk; its tree has one node above them."""
SIZE = LEAVES * LEAF_SIZE
KEPT = SIZE // 2
"""Bytes from the disk's start on that only the first point writes."""
GUEST = "web"
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class _Disk:
    """The disk's leaves as they are now, and their hashes (`fleece.tree.NodeSource`)."""

    geometry: Geometry
    leaves: list[bytes]
    hashes: list[bytes]
    top: bytes = b""

    def write(self, number: int, leaf: bytes) -> None:
        self.leaves[number], self.hashes[number] = leaf, XXH3_128.digest(leaf)

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        assert (level, nodes.tolist()) == (1, [0])
        return np.frombuffer(b"".join(self.hashes), np.uint8).reshape(1, LEAVES, -1)


def content(number: int, start: bytes = b"") -> bytes:
    """The disk at the point of a number, from 1 on."""
    disk = bytearray(start.ljust(SIZE, b"\1"))
    for step in range(max(2, number - LEAVES), number + 1):
        at = _written(step) * LEAF_SIZE
        disk[at : at + LEAF_SIZE] = _leaf(step)
    return bytes(disk)


def _written(number: int) -> int:
    """The leaf that the point of a number writes."""
    return LEAVES // 2 + number % (LEAVES // 2)


def _leaf(number: int) -> bytes:
    return number.to_bytes(4, "big") * (LEAF_SIZE // 4)


def point_id(number: int) -> str:
    """The id of the point of a number."""
    return f"{number:010x}"


def fill(
    store: Store,
    count: int,
    *,
    guest: str = GUEST,
    disk: str = "vda",
    start: bytes = b"",
    begin: datetime = BEGIN,
    every: timedelta = timedelta(hours=1),
) -> None:
    """Give a guest `count` points, each but the first an incremental of one leaf.

    Args:
        store: an empty one.
        count: of the points.
        guest: its name.
        disk: the disk's name.
        start: of the disk, at most `KEPT` bytes.
        begin, every: when its points were taken.
    """
    head = _header(store.chain_id(guest), guest, disk)
    now = content(1, start)
    known = _Disk(head.geometry, [b""] * LEAVES, [b""] * LEAVES)
    for leaf in range(LEAVES):
        known.write(leaf, now[leaf * LEAF_SIZE : (leaf + 1) * LEAF_SIZE])
    packer = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    parent: ParentRef | None = None
    for number in range(1, count + 1):
        time = (begin + number * every).isoformat()
        head = replace(
            head,
            file_id=uuid.UUID(int=number),
            point=PointRef(point_id(number), number, time),
            parent=parent,
            mode=Mode.FULL if parent is None else Mode.INCREMENTAL,
        )
        dirty = [*range(LEAVES)] if number == 1 else [_written(number)]
        folder = Path(store.where) / safe_name(guest) / f"{number:06d}-{point_id(number)}"
        folder.mkdir(parents=True)
        with (folder / f"{disk}.fleece").open("wb") as sink:
            writer = DeltaWriter(sink, head, known)
            for leaf in dirty:
                if number > 1:
                    known.write(leaf, _leaf(number))
                data, digest = known.leaves[leaf], known.hashes[leaf]
                writer.data(leaf * LEAF_SIZE, LEAF_SIZE, digest, packer.compress(data))
            root = writer.finish().root.hex()
        parent = ParentRef(point_id(number), root, SIZE)


def _header(chain: str, guest: str, disk: str) -> Header:
    return Header(
        file_id=uuid.UUID(int=0),
        chain=chain,
        guest=guest,
        disk=disk,
        size=SIZE,
        point=PointRef(point_id(0), 0, BEGIN.isoformat()),
        parent=None,
        mode=Mode.FULL,
        disks=(disk,),
        level=1,
        granularity=None,
        producer={},
    )
