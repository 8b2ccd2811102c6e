"""What is read of a disk: all that is wanted, little else, in requests of a bounded size."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager

from hypothesis import given
from hypothesis import strategies as st

from fleece.disk.base import Reader
from fleece.engine.work.reads import ASK_FROM, GAP, MAX_READ, ReadItem, known_zeros, read_items
from fleece.extents import Extents
from tests.unit.kit import places

_UNIT = 4096
_SIZE = 4 * MAX_READ + 1234


def _cells(pairs: list[tuple[int, int]]) -> Extents:
    """Whole leaves of a disk of odd size: `(first, count)` pairs."""
    ranges = [(first * _UNIT, (first + count) * _UNIT) for first, count in pairs]
    return Extents.of(ranges).clip(0, _SIZE)


_leaves = places(_SIZE, MAX_READ // 16).map(lambda place: place // _UNIT)
_counts = st.integers(1, 20) | st.integers(1, 400)
_wanted = st.lists(st.tuples(_leaves, _counts), max_size=10).map(_cells)


def _pieces(items: list[ReadItem]) -> list[tuple[int, int]]:
    return [pair for item in items for pair in item.wanted]


@given(_wanted)
def test_the_wanted_parts_of_all_reads_are_exactly_what_is_wanted(wanted: Extents) -> None:
    pieces = _pieces(list(read_items(wanted)))
    assert Extents.of(pieces) == wanted
    assert sum(end - start for start, end in pieces) == wanted.total
    assert pieces == sorted(pieces)


@given(_wanted)
def test_no_read_is_longer_than_allowed_or_crosses_a_multiple_of_that(wanted: Extents) -> None:
    for item in read_items(wanted):
        assert 0 < item.length <= MAX_READ
        assert item.start // MAX_READ == (item.end - 1) // MAX_READ


@given(_wanted)
def test_every_wanted_part_lies_within_its_read_and_is_of_whole_leaves(wanted: Extents) -> None:
    for item in read_items(wanted):
        assert item.wanted
        for start, end in item.wanted:
            assert item.start <= start < end <= item.end
            assert start % _UNIT == 0
            assert end % _UNIT == 0 or end == _SIZE


@given(_wanted)
def test_nothing_is_read_twice_and_only_small_gaps_are_read_along(wanted: Extents) -> None:
    items = list(read_items(wanted))
    assert all(a.end <= b.start for a, b in itertools.pairwise(items))
    read = Extents.of((item.start, item.end) for item in items)
    assert all(end - start <= GAP for start, end in read.subtract(wanted))


@given(_wanted)
def test_a_gap_that_is_small_enough_does_not_part_reads(wanted: Extents) -> None:
    for one, other in itertools.pairwise(read_items(wanted)):
        same_cell = one.start // MAX_READ == other.start // MAX_READ
        assert not same_cell or other.start - one.end > GAP


def test_small_gaps_are_joined_and_larger_ones_are_not() -> None:
    near = Extents.of([(0, _UNIT), (_UNIT + GAP, 2 * _UNIT + GAP)])
    assert list(read_items(near)) == [ReadItem(0, 2 * _UNIT + GAP, tuple(near))]
    far = Extents.of([(0, _UNIT), (2 * _UNIT + GAP, 3 * _UNIT + GAP)])
    assert [item.wanted for item in read_items(far)] == [(pair,) for pair in far]


def test_nothing_is_read_for_nothing() -> None:
    assert list(read_items(Extents.empty())) == []


# ---- zeros that need no reading --------------------------------------------------------------


class _Disk:
    """A disk that knows its zeros and notes what it was asked."""

    where = "test"

    def __init__(self, size: int, zeros: Extents) -> None:
        self.size = size
        self.zeros = zeros
        self.asked = Extents.empty()

    def reader(self) -> AbstractContextManager[Reader]:
        raise AssertionError

    def zero_extents(self, within: Extents) -> Extents:
        self.asked = within
        return self.zeros.intersect(within)


_bytes = places(_SIZE, MAX_READ // 16)
_zeros = st.lists(st.tuples(_bytes, _bytes), max_size=6).map(Extents.of)


@given(_wanted, _zeros)
def test_known_zeros_are_whole_dirty_leaves_that_the_disk_called_zero(
    dirty: Extents, zeros: Extents
) -> None:
    found = known_zeros(_Disk(_SIZE, zeros), dirty, _UNIT)
    assert len(found.subtract(dirty)) == 0
    assert len(found.subtract(zeros)) == 0
    assert all(start % _UNIT == 0 for start, _ in found)
    assert all(end % _UNIT == 0 or end == _SIZE for _, end in found)


@given(_wanted, _zeros)
def test_only_long_dirty_ranges_are_asked_about(dirty: Extents, zeros: Extents) -> None:
    disk = _Disk(_SIZE, zeros)
    known_zeros(disk, dirty, _UNIT)
    assert all(end - start >= ASK_FROM for start, end in disk.asked)
    for start, end in dirty:
        if end - start >= ASK_FROM:
            assert len(Extents.of([(start, end)]).subtract(disk.asked)) == 0


def test_the_whole_of_a_blank_disk_is_known_zero_to_its_last_odd_byte() -> None:
    whole = Extents.whole(_SIZE)
    assert known_zeros(_Disk(_SIZE, whole), whole, _UNIT) == whole
