"""Two trees compared: exactly the leaves that differ, and no more nodes than lead to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece import compare
from fleece.compare import TreeComparison
from fleece.errors import UsageError
from fleece.extents import Extents, Int64Array
from fleece.tree import BlankDisk, Geometry, HashArray, NodeSource
from tests.unit.kit import (
    LEAF,
    Change,
    History,
    OpenChain,
    histories,
    naive_levels,
    store_history,
)


class _Whole:
    """The tree of a disk, from its bytes, that counts what is asked for."""

    def __init__(self, disk: bytes, fan_out: int) -> None:
        self.geometry = Geometry(len(disk), LEAF, fan_out)
        self._levels = naive_levels(disk, fan_out)
        self.top = self._levels[-1][0]
        self.asked: list[tuple[int, int]] = []

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        fan, below = self.geometry.fan_out, self._levels[level - 1]
        self.asked += [(level, node) for node in nodes.tolist()]
        lists = [below[node * fan : (node + 1) * fan] for node in nodes.tolist()]
        zero = self.geometry.zeros[level - 1]
        flat = b"".join(b"".join(part) + zero * (fan - len(part)) for part in lists)
        return np.frombuffer(flat, np.uint8).reshape(len(lists), fan, -1)


def differing(old: NodeSource, new: NodeSource) -> Extents:
    """All that a comparison gives, which must come in order and apart."""
    parts = [*TreeComparison(old, new)]
    ends = [int(part.end[-1]) for part in parts]
    assert all(end <= int(part.start[0]) for end, part in zip(ends, parts[1:], strict=False))
    return Extents.of([pair for part in parts for pair in part])


def expected(old: bytes, new: bytes) -> Extents:
    """The leaves that differ, a shorter disk continued by zeros."""
    size = max(len(old), len(new))
    old, new = old.ljust(size, b"\0"), new.ljust(size, b"\0")
    return Extents.of(
        (at, min(at + LEAF, size))
        for at in range(0, size, LEAF)
        if old[at : at + LEAF] != new[at : at + LEAF]
    )


@settings(max_examples=60, deadline=None)
@given(history=histories(), data=st.data())
def test_any_two_points_of_a_chain(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    stored = store_history(tmp_path_factory.mktemp("history"), history)
    one, two = (data.draw(st.integers(1, len(stored))) for _ in range(2))
    with (
        OpenChain([item.path for item in reversed(stored[:one])]) as old,
        OpenChain([item.path for item in reversed(stored[:two])]) as new,
    ):
        assert differing(old, new) == expected(stored[one - 1].disk, stored[two - 1].disk)


@settings(max_examples=100, deadline=None)
@given(
    old=st.lists(st.integers(0, 2), max_size=20),
    new=st.lists(st.integers(0, 2), max_size=20),
    tail=st.integers(0, LEAF - 1),
    fan_out=st.sampled_from([2, 16]),
    batch=st.sampled_from([1, 3, 4096]),
)
def test_any_two_disks_of_any_sizes(
    old: list[int], new: list[int], tail: int, fan_out: int, batch: int
) -> None:
    one, two = (b"".join(bytes([fill]) * LEAF for fill in fills) for fills in (old, new))
    two += b"\3" * tail
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "_BATCH", batch)
        assert differing(_Whole(one, fan_out), _Whole(two, fan_out)) == expected(one, two)
        assert differing(_Whole(two, fan_out), _Whole(one, fan_out)) == expected(one, two)
        joined = TreeComparison(_Whole(one, fan_out), _Whole(two, fan_out)).ranges()
        assert [*joined] == [*expected(one, two)]


def test_it_descends_only_where_they_differ() -> None:
    """One leaf of 4096: one node of each level on either side, and nothing twice."""
    disk = b"".join(number.to_bytes(2, "big") * (LEAF // 2) for number in range(1, 4097))
    changed = bytearray(disk)
    changed[1234 * LEAF] ^= 1
    old, new = _Whole(disk, 16), _Whole(bytes(changed), 16)
    comparison = TreeComparison(old, new)
    assert [*comparison] == [Extents.of([(1234 * LEAF, 1235 * LEAF)])]
    path = [(3, 0), (2, 1234 // 256), (1, 1234 // 16)]
    assert old.asked == new.asked == path
    assert comparison.fetched == 6


def test_trees_that_are_the_same_are_not_read() -> None:
    disk = b"\1" * (64 * LEAF)
    comparison = TreeComparison(_Whole(disk, 2), _Whole(disk, 2))
    assert [*comparison] == []
    assert comparison.fetched == 0


def test_what_is_zero_on_one_side_is_read_on_the_other_alone() -> None:
    disk = bytes(16 * LEAF) + b"\1" * (16 * LEAF)
    full, blank = _Whole(disk, 2), BlankDisk(Geometry(len(disk), LEAF, 2))
    comparison = TreeComparison(full, blank)
    assert Extents.of([p for e in comparison for p in e]) == Extents.of([(16 * LEAF, 32 * LEAF)])
    assert comparison.fetched == len(full.asked) == 1 + (1 + 2 + 4 + 8)
    assert len(set(full.asked)) == len(full.asked)


def test_trees_of_different_shapes_cannot_be_compared() -> None:
    disk = bytes(LEAF)
    with pytest.raises(UsageError, match="different leaf sizes, fan-outs or hashes"):
        TreeComparison(_Whole(disk, 2), _Whole(disk, 16))


def test_the_trees_of_huge_disks_are_compared_by_what_differs(tmp_path: Path) -> None:
    """A blank disk of 1 TiB against one that has a single leaf of data."""
    size = 1 << 40
    steps = ((Change(0, 5 * LEAF, 1),), (Change(2 * LEAF, 3 * LEAF, 2),))
    stored = store_history(tmp_path, History(40 * LEAF, 2, steps))
    with OpenChain([item.path for item in reversed(stored)]) as chain:
        comparison = TreeComparison(BlankDisk(Geometry(size, LEAF, 2)), chain)
        assert [*comparison] == [Extents.of([(0, 5 * LEAF)])]
        assert comparison.fetched < 20
