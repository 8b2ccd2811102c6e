"""What a delta costs beside its data; docs/internals/architecture.rst has the reasons."""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard

from fleece.delta.header import Header
from fleece.delta.writer import DeltaWriter
from fleece.extents import Int64Array
from fleece.hashing import BLAKE3, XXH3_128, HashAlgorithm
from fleece.tree import LEAF_SIZE, Geometry, HashArray
from tests.unit.kit import header

MIB = 1 << 20
TIB = 1 << 40

HASHES = pytest.mark.parametrize("algorithm", [XXH3_128, BLAKE3], ids=["xxh3-128", "blake3"])


class FullDisk:
    """The node source of a disk whose every leaf holds data: no child is a zero constant."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.top = b"\1" * geometry.algorithm.size

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        """Any hashes: their number is what counts."""
        shape = len(nodes), self.geometry.fan_out, self.geometry.algorithm.size
        return np.full(shape, level, np.uint8)


def _header(size: int, algorithm: HashAlgorithm) -> Header:
    return dataclasses.replace(header(size), algorithm=algorithm, leaf_size=LEAF_SIZE, fan_out=16)


def _stored(head: Header, runs: Iterator[tuple[int, bytes]]) -> tuple[int, int, int]:
    """Bytes of disk, of zstd frames, and of all of the file."""
    writer = DeltaWriter(io.BytesIO(), head, FullDisk(head.geometry))
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    frames = 0
    for offset, data in runs:
        frame = compressor.compress(data)
        frames += len(frame)
        leaves = -(-len(data) // LEAF_SIZE) * head.algorithm.size
        writer.data(offset, len(data), random.Random(offset).randbytes(leaves), frame)
    done = writer.finish()
    return done.data_bytes, frames, done.stored_bytes


@HASHES
def test_for_contiguous_dirt_all_but_the_frames_costs_one_percent_at_most(
    algorithm: HashAlgorithm,
) -> None:
    """Data that packs to a third, as text does: the frames are small, what is beside them not."""
    some = random.Random(1).randbytes(MIB // 3).ljust(MIB, b"x")
    runs = ((at * MIB, some) for at in range(64))
    _, frames, stored = _stored(_header(TIB, algorithm), runs)
    assert stored - frames <= frames / 100


@HASHES
def test_for_scattered_clusters_of_a_full_disk_it_costs_four_percent_of_the_dirt_at_most(
    algorithm: HashAlgorithm,
) -> None:
    leaf = random.Random(1).randbytes(LEAF_SIZE)
    places = random.Random(2).sample(range(TIB // LEAF_SIZE), 4096)
    dirty, frames, stored = _stored(
        _header(TIB, algorithm), ((at * LEAF_SIZE, leaf) for at in places)
    )
    assert dirty == len(places) * LEAF_SIZE
    assert stored - frames <= dirty * 4 / 100
