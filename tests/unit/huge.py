"""A delta of a huge disk, every MiB a record, in a sparse file that has only what is asked for.

All pages are listed in the directory as they would be, but only those that the chosen records need
are written, and of the records only the chosen ones. Reading anything else finds zero bytes,
which no hash fits: so a reader that gets by has read no more than it needed.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from fleece.delta import footer, header, pages, record
from fleece.delta.header import Header, Mode, PointRef
from fleece.delta.layout import (
    INDEX_PAGE_ROWS,
    INDEX_ROW,
    TREE_PAGE_NODES,
    Kind,
    Tag,
    directory_row,
    own_hash,
    seal,
)
from fleece.delta.pages import Page
from fleece.tree import Geometry, Level
from tests.unit.kit import naive_levels

MIB = 1 << 20
_STRIDE = 4096


def head(size: int) -> Header:
    """The header of a full of a disk with the tree's usual shape."""
    return Header(
        file_id=uuid.UUID(int=1),
        chain="0123abcd",
        guest="web",
        disk="vda",
        size=size,
        point=PointRef("0000000001", 1, "2024-01-01T00:00:00Z"),
        parent=None,
        mode=Mode.FULL,
        disks=("vda",),
        level=1,
        granularity=None,
        producer={},
    )


def content(number: int) -> bytes:
    """The MiB of disk of a record."""
    return number.to_bytes(8, "little") * (MIB // 8)


@dataclass(frozen=True)
class _Chosen:
    """A record that is really there, with its frame."""

    row: tuple[int, int, int, int, int]
    packed: bytes


def _chosen(number: int, start: int, geometry: Geometry) -> _Chosen:
    data = content(number)
    frame = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    size, algorithm = geometry.algorithm.size, geometry.algorithm
    leaves = b"".join(naive_levels(data, 16, geometry.leaf_size)[0])
    packed = record.pack(
        record.Record(
            Kind.DATA,
            uuid.UUID(int=1),
            number,
            number * MIB,
            MIB,
            len(frame),
            bytes(size),
            algorithm.digest(frame),
            leaves,
        ),
        geometry,
    )
    position = start + number * _STRIDE
    return _Chosen((number * MIB, MIB, position, len(frame), Kind.DATA), packed + frame)


def _index_page(first: int, count: int, start: int, chosen: dict[int, _Chosen]) -> np.ndarray:
    rows = np.zeros(count, INDEX_ROW)
    numbers = np.arange(first, first + count)
    rows["offset"], rows["length"], rows["kind"] = numbers * MIB, MIB, Kind.DATA
    rows["position"], rows["frame_length"] = start + numbers * _STRIDE, 100
    for number in chosen.keys() & set(range(first, first + count)):
        rows[number - first] = chosen[number].row
    return rows


class _File:
    """The file that grows; what is not written stays a hole."""

    def __init__(self, file: BinaryIO, geometry: Geometry) -> None:
        self._file = file
        self._geometry = geometry
        self.position = 0
        self.listed: list[Page] = []

    def write(self, data: bytes) -> None:
        self._file.seek(self.position)
        self._file.write(data)
        self.position += len(data)

    def page(self, frame: bytes, page: Page) -> None:
        self.listed.append(replace(page, position=self.position))
        self.write(frame)

    def missing(self, page: Page) -> None:
        self.listed.append(replace(page, position=self.position))
        self.position += page.length


def write(path: Path, size: int, records: Collection[int], *, whole_index: bool = False) -> None:
    """Write the delta.

    Args:
        path: of the file.
        size: of the disk, a multiple of 1 MiB.
        records: the numbers of the records that can be read.
        whole_index: write every page of the index.
    """
    with path.open("wb") as raw:
        top = head(size)
        geometry = top.geometry
        file = _File(raw, geometry)
        packed = header.pack(top)
        file.write(packed)
        start = file.position
        chosen = {number: _chosen(number, start, geometry) for number in records}
        for one in chosen.values():
            file.position = one.row[2]
            file.write(one.packed)
        file.position = start + size // MIB * _STRIDE
        _tree(file, geometry, chosen)
        _index(file, geometry, start, chosen, whole_index)
        _end(file, geometry, own_hash(packed, geometry.algorithm))


def _tree(file: _File, geometry: Geometry, chosen: dict[int, _Chosen]) -> None:
    nodes, hash_size = geometry.leaves, geometry.algorithm.size
    for level in range(1, geometry.height + 1):
        nodes = -(-nodes // geometry.fan_out)
        under = MIB // geometry.leaf_size
        needed = {n * under // geometry.fan_out**level // TREE_PAGE_NODES for n in chosen}
        for number, at in enumerate(range(0, nodes, TREE_PAGE_NODES)):
            count = min(TREE_PAGE_NODES, nodes - at)
            if number in needed:
                _real_tree_page(file, geometry, level, at, count)
            else:
                length = 12 + 8 + count * (8 + geometry.fan_out * hash_size) + hash_size
                file.missing(
                    Page(Tag.TREE, level, count, at, at + count - 1, 0, length, bytes(hash_size))
                )


def children(geometry: Geometry, level: int, first: int, count: int) -> np.ndarray:
    """What the nodes of a level have as children: arbitrary, and always the same."""
    chance = np.random.default_rng((level, first))
    return chance.integers(0, 255, (count, geometry.fan_out, geometry.algorithm.size), np.uint8)


def _real_tree_page(file: _File, geometry: Geometry, level: int, at: int, count: int) -> None:
    nodes = np.arange(at, at + count)
    made = Level(level, nodes, children(geometry, level, at, count))
    for frame, page in pages.tree_pages((made,), geometry):
        file.page(frame, page)


def _index(
    file: _File, geometry: Geometry, start: int, chosen: dict[int, _Chosen], whole: bool
) -> None:
    count = geometry.size // MIB
    for first in range(0, count, INDEX_PAGE_ROWS):
        most = min(INDEX_PAGE_ROWS, count - first)
        if whole or any(first <= number < first + most for number in chosen):
            for frame, page in pages.index_pages(
                [_index_page(first, most, start, chosen)], geometry
            ):
                file.page(frame, page)
        else:
            hash_size = geometry.algorithm.size
            length = 12 + 8 + most * INDEX_ROW.itemsize + hash_size
            low, high = first * MIB, (first + most - 1) * MIB
            file.missing(Page(Tag.INDEX, 0, most, low, high, 0, length, bytes(hash_size)))


def _directory(listed: list[Page], geometry: Geometry) -> bytes:
    rows = np.zeros(len(listed), directory_row(geometry.algorithm))
    for at, page in enumerate(listed):
        fields = (page.level, page.count, page.first, page.last, page.position, page.length)
        rows[at] = (page.tag.value, *fields, page.hash)
    return seal(Tag.DIRECTORY, rows.tobytes(), geometry.algorithm)


def _end(file: _File, geometry: Geometry, header_hash: bytes) -> None:
    top = bytes(geometry.algorithm.size)
    directory = _directory(file.listed, geometry)
    last = footer.Footer(
        file_id=uuid.UUID(int=1),
        directory_position=file.position,
        directory_length=len(directory),
        records=geometry.size // MIB,
        data_bytes=geometry.size,
        zero_bytes=0,
        frame_bytes=geometry.size // MIB * 100,
        header_hash=header_hash,
        last_record=bytes(geometry.algorithm.size),
        directory_hash=own_hash(directory, geometry.algorithm),
        top=top,
        root=geometry.root(top),
    )
    file.write(directory)
    file.write(footer.pack(last, geometry.algorithm))


def spread(size: int, count: int) -> Iterator[int]:
    """Numbers of records all over the disk, the first and the last among them."""
    last = size // MIB - 1
    yield from (last * at // (count - 1) for at in range(count))
