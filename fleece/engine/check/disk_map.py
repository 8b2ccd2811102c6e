"""What a point of a disk is made of: which parts are data or zero, and from which point each is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fleece.delta.chain import Chain, ChainMap
from fleece.delta.header import PointRef
from fleece.extents import Flags, Int64Array, joined


@dataclass(frozen=True)
class MappedExtent:
    """A range of the disk that one delta holds, as data or as zeros.

    Attributes:
        start, end: bytes of disk.
        zero: it reads as zeros.
        owner: number of the delta in the chain; 0 is the newest.
    """

    start: int
    end: int
    zero: bool
    owner: int


def mapped_extents(chain: Chain) -> Iterator[MappedExtent]:
    """The whole disk in order, neighbours of one delta and kind joined.

    Raises:
        DeltaError: an index is damaged, or does not cover the disk.
    """
    return joined(
        itertools.chain.from_iterable(map(_runs, chain.maps())),
        lambda extent: (extent.zero, extent.owner),
        lambda first, last: replace(first, end=last.end),
    )


def _runs(picture: ChainMap) -> Iterator[MappedExtent]:
    """The pieces of a map, joined; they follow one another without gaps."""
    zero, owner = picture.zero, picture.owner
    opens = np.concatenate(([True], (zero[1:] != zero[:-1]) | (owner[1:] != owner[:-1])))
    closes = np.concatenate((opens[1:], [True]))
    columns = picture.start[opens], picture.end[closes], zero[opens], owner[opens]
    for row in zip(*(column.tolist() for column in columns), strict=True):
        yield MappedExtent(*row)


@dataclass(frozen=True)
class Picture:
    """How much of each part of a disk comes from where.

    Attributes:
        size: of the disk in bytes.
        cell: bytes of disk in a cell; the last one may be short.
        points: of the chain, newest first.
        data: int64[cells, points], bytes of data in a cell from each point.
        zeros: int64[points], bytes that each point says are zeros.
    """

    size: int
    cell: int
    points: tuple[PointRef, ...]
    data: Int64Array
    zeros: Int64Array

    @property
    def data_bytes(self) -> Int64Array:
        """int64[points]: bytes of data from each point."""
        total: Int64Array = self.data.sum(axis=0)
        return total

    def filled(self, number: int) -> float:
        """The share of a cell that is data, 0 to 1."""
        length = min(self.cell, self.size - number * self.cell)
        return float(self.data[number].sum()) / length

    def owner(self, number: int) -> int:
        """Which point most of a cell's data is from."""
        return int(self.data[number].argmax())


def picture_of(chain: Chain, cells: int) -> Picture:
    """Draw a disk.

    Args:
        chain: of the disk, open.
        cells: how many there may be.

    Raises:
        DeltaError: an index is damaged, or does not cover the disk.
    """
    size, leaf = chain.geometry.size, chain.geometry.leaf_size
    cell = max(1, -(-size // (cells * leaf))) * leaf
    data = np.zeros((-(-size // cell), len(chain.deltas)), np.int64)
    zeros = np.zeros(len(chain.deltas), np.int64)
    for picture in chain.maps():
        zero, length = picture.zero, picture.end - picture.start
        np.add.at(zeros, picture.owner[zero], length[zero])
        start, end, owner = _split(picture, ~zero, cell)
        np.add.at(data, (start // cell, owner), end - start)
    points = tuple(delta.header.point for delta in chain.deltas)
    return Picture(size, cell, points, data, zeros)


def _split(
    picture: ChainMap, picked: Flags, cell: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Some pieces, cut at every multiple of `cell`: (start, end, owner) of each part."""
    start, end, owner = picture.start[picked], picture.end[picked], picture.owner[picked]
    first = start // cell
    count = (end - 1) // cell - first + 1
    row = np.repeat(np.arange(len(start)), count)
    number = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    low = np.maximum(number * cell, start[row])
    high = np.minimum((number + 1) * cell, end[row])
    return low, high, owner[row].astype(np.int64)
