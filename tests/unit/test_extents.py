"""Sets of byte ranges, compared with plain Python sets of byte numbers."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleece.extents import Extents

_MOST = 80
_places = st.integers(0, _MOST)
_pairs = st.lists(st.tuples(_places, _places), max_size=12)
_sets = _pairs.map(Extents.of)
_units = st.integers(1, 17)


def _members(extents: Extents) -> set[int]:
    return {byte for start, end in extents for byte in range(start, end)}


def _is_normal(extents: Extents) -> bool:
    pairs = list(extents)
    touching = any(b[0] <= a[1] for a, b in itertools.pairwise(pairs))
    return all(start < end for start, end in pairs) and not touching


def _same(extents: Extents, members: set[int]) -> bool:
    return _is_normal(extents) and _members(extents) == members


@given(_pairs)
def test_any_pairs_become_the_normal_set_of_their_bytes(pairs: list[tuple[int, int]]) -> None:
    assert _same(Extents.of(pairs), {byte for start, end in pairs for byte in range(start, end)})


@given(_pairs)
def test_two_sets_are_equal_exactly_if_their_bytes_are(pairs: list[tuple[int, int]]) -> None:
    one, other = Extents.of(pairs), Extents.of(reversed(pairs))
    assert one == other
    assert one != Extents.of([*pairs, (_MOST + 1, _MOST + 2)])
    assert one != "something else"


@given(_sets)
def test_length_total_and_iteration_agree(extents: Extents) -> None:
    assert extents.length.tolist() == [end - start for start, end in extents]
    assert extents.total == len(_members(extents))
    assert len(extents) == len(list(extents))
    assert all(type(place) is int for pair in extents for place in pair)


@given(_sets, _sets)
def test_union_holds_what_is_in_either(one: Extents, other: Extents) -> None:
    assert _same(one.union(other), _members(one) | _members(other))


@given(_sets, _sets)
def test_intersection_holds_what_is_in_both(one: Extents, other: Extents) -> None:
    assert _same(one.intersect(other), _members(one) & _members(other))


@given(_sets, _sets)
def test_subtraction_leaves_what_is_only_in_the_first(one: Extents, other: Extents) -> None:
    assert _same(one.subtract(other), _members(one) - _members(other))


@given(_sets, _places, _places)
def test_clip_holds_what_lies_in_the_window(extents: Extents, a: int, b: int) -> None:
    start, end = min(a, b), max(a, b)
    assert _same(extents.clip(start, end), _members(extents) & set(range(start, end)))


@given(_sets, st.lists(st.tuples(_places, st.integers(1, 9)), max_size=8))
def test_contains_says_which_ranges_lie_wholly_inside(
    extents: Extents, asked: list[tuple[int, int]]
) -> None:
    starts = np.array([start for start, _ in asked], np.int64)
    ends = np.array([start + length for start, length in asked], np.int64)
    inside = _members(extents)
    assert extents.contains(starts, ends).tolist() == [
        set(range(start, start + length)) <= inside for start, length in asked
    ]


@given(_sets, _units, st.integers(0, _MOST + 20))
def test_align_out_takes_every_unit_that_is_touched_up_to_the_limit(
    extents: Extents, unit: int, limit: int
) -> None:
    touched = {byte // unit for byte in _members(extents)}
    wanted = {byte for byte in range(limit) if byte // unit in touched}
    assert _same(extents.align_out(unit, limit), wanted)


@given(_sets, _units, st.integers(0, _MOST + 20))
def test_align_in_takes_only_whole_units_and_counts_a_short_last_one_as_whole(
    extents: Extents, unit: int, limit: int
) -> None:
    members = _members(extents)
    wanted: set[int] = set()
    for start in range(0, limit, unit):
        cell = set(range(start, min(start + unit, limit)))
        wanted |= cell if cell <= members else set()
    assert _same(extents.align_in(unit, limit), wanted)


@given(_sets, st.integers(0, 20))
def test_join_closes_the_gaps_that_are_small_enough_and_no_others(
    extents: Extents, gap: int
) -> None:
    members = _members(extents)
    pairs = list(extents)
    for (_, end), (start, _) in itertools.pairwise(pairs):
        if start - end <= gap:
            members |= set(range(end, start))
    assert _same(extents.join(gap), members)


@given(_sets, _units)
def test_split_cuts_at_every_multiple_and_nowhere_else(extents: Extents, unit: int) -> None:
    starts, ends = extents.split(unit)
    expected = []
    for start, end in extents:
        bounds = [start, *(at for at in range(start + 1, end) if at % unit == 0), end]
        expected += list(itertools.pairwise(bounds))
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected


def test_the_whole_of_a_disk_of_no_bytes_is_empty() -> None:
    assert Extents.whole(0) == Extents.empty()
    assert list(Extents.whole(7)) == [(0, 7)]


def test_the_empty_set_is_the_neutral_one_of_every_operation() -> None:
    none, some = Extents.empty(), Extents.of([(3, 9)])
    assert none.union(some) == some.union(none) == some.subtract(none) == some
    assert none.subtract(some) == none.intersect(some) == some.intersect(none) == none
    assert none.join(5) == none.clip(0, 9) == none.align_out(4, 9) == none.align_in(4, 9) == none
    assert [len(part) for part in none.split(4)] == [0, 0]


def test_ranges_of_exabytes_are_exact() -> None:
    top = 1 << 60
    extents = Extents.of([(top - 3, top), (1, 2)])
    assert list(extents.align_out(65536, top)) == [(0, 65536), (top - 65536, top)]
    assert list(Extents.whole(top).subtract(extents)) == [(0, 1), (2, top - 3)]
    assert Extents.whole(top).total == top


def test_a_long_set_is_shown_by_its_beginning() -> None:
    assert repr(Extents.of([(1, 2), (4, 6)])) == "Extents([1, 2), [4, 6))"
    assert repr(Extents.of([(at, at + 1) for at in range(0, 20, 2)])).endswith(", ...)")
