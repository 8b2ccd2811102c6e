"""What is told of a disk's ranges over HTTP: whole, in order, each range as long as it can be."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fleece.engine.http.extents import Context, HttpDisk, extents_json
from fleece.engine.work.reads import WINDOW
from fleece.extents import Extents
from tests.unit.kit import LEAF


@dataclass(frozen=True)
class _Map:
    """A disk of which only is known what is zero."""

    size: int
    zeros: Extents
    where: str = "a map"

    @contextlib.contextmanager
    def reader(self) -> Iterator[_Map]:
        yield self

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("nobody reads")

    def zero_extents(self, within: Extents) -> Extents:
        return self.zeros.intersect(within)


def _told(disk: HttpDisk, context: Context) -> list[tuple[int, int, bool, bool]]:
    rows = json.loads(b"".join(extents_json(disk, context)))
    told = [
        (row["start"], row["start"] + row["length"], row["zero"], row.get("dirty", False))
        for row in rows
    ]
    assert [row[0] for row in told] == [0, *(row[1] for row in told)][: len(told)]
    assert not told or told[-1][1] == disk.disk.size
    assert all(one[2:] != next_[2:] for one, next_ in itertools.pairwise(told))
    return told


@pytest.mark.parametrize("rows", [0, 1, 2, 4095, 4096, 4097, 8192, 10000])
def test_any_number_of_ranges_is_one_list(rows: int) -> None:
    zeros = Extents.of((at * LEAF, (at + 1) * LEAF) for at in range(1, rows, 2))
    told = _told(HttpDisk("vda", _Map(rows * LEAF, zeros)), Context.ZERO)
    assert [row[2] for row in told] == [bool(at % 2) for at in range(rows)]


def test_a_range_is_one_though_it_is_asked_about_by_parts() -> None:
    zeros = Extents.of([(LEAF, 2 * WINDOW + LEAF)])
    told = _told(HttpDisk("vda", _Map(3 * WINDOW, zeros)), Context.ZERO)
    assert [row[:3] for row in told] == [
        (0, LEAF, False),
        (LEAF, 2 * WINDOW + LEAF, True),
        (2 * WINDOW + LEAF, 3 * WINDOW, False),
    ]


def test_of_what_did_not_change_it_is_not_told_whether_it_is_zero() -> None:
    changed = Extents.of([(2 * LEAF, 5 * LEAF)])
    disk = _Map(8 * LEAF, Extents.of([(0, LEAF), (4 * LEAF, 6 * LEAF)]))
    assert _told(HttpDisk("vda", disk, changed.intersect), Context.DIRTY) == [
        (0, 2 * LEAF, False, False),
        (2 * LEAF, 4 * LEAF, False, True),
        (4 * LEAF, 5 * LEAF, True, True),
        (5 * LEAF, 8 * LEAF, False, False),
    ]
