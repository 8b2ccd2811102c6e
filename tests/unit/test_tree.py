"""The hash tree: built from changes alone, it is the tree of the whole disk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.extents import Extents, Int64Array
from fleece.tree import (
    BlankDisk,
    Geometry,
    HashArray,
    Tree,
    build,
    dense_parents,
    joined,
)
from tests.unit.kit import LEAF, History, applied, histories, naive_levels, naive_root, places

TIB = 1 << 40


class _WholeTree:
    """A node source that holds every node of a disk: what a chain of deltas must amount to."""

    def __init__(self, disk: bytes, geometry: Geometry) -> None:
        self.geometry = geometry
        self.levels = naive_levels(disk, geometry.fan_out, geometry.leaf_size)
        self.top = self.levels[-1][0]

    def children(self, level: int, nodes: Int64Array) -> HashArray:
        fan, below = self.geometry.fan_out, self.levels[level - 1]
        lists = [below[node * fan : (node + 1) * fan] for node in nodes.tolist()]
        zero = self.geometry.zeros[level - 1]
        flat = b"".join(b"".join(part) + zero * (fan - len(part)) for part in lists)
        return np.frombuffer(flat, np.uint8).reshape(len(lists), fan, -1)


def _change(geometry: Geometry, disk: bytes, dirty: Extents, base: _WholeTree | BlankDisk) -> Tree:
    """The tree after a change, by the dirty leaves alone."""
    leaves = [leaf for a, b in dirty for leaf in range(a // LEAF, -(-b // LEAF))]
    hashes = naive_levels(disk, geometry.fan_out)[0]
    zero = {leaf for leaf in leaves if not any(disk[leaf * LEAF : (leaf + 1) * LEAF])}
    data = [leaf for leaf in leaves if leaf not in zero]
    packed = np.frombuffer(b"".join(hashes[leaf] for leaf in data), np.uint8).reshape(-1, 16)
    spans = Extents.of([(leaf, leaf + 1) for leaf in zero])
    return build(geometry, np.array(data, np.int64), packed, spans, base)


def _dense_root(geometry: Geometry, disk: bytes) -> bytes:
    flat = b"".join(naive_levels(disk, geometry.fan_out)[0]) if disk else b""
    hashes: HashArray = np.frombuffer(flat, np.uint8).reshape(-1, 16)
    if len(hashes) == 0:
        return geometry.root(geometry.zeros[0])
    for level in range(1, geometry.height + 1):
        hashes = dense_parents(geometry, level, hashes)
    return geometry.root(hashes[0].tobytes())


@given(histories(most_leaves=40))
def test_a_tree_built_from_changes_has_the_root_of_the_disk(history: History) -> None:
    geometry = Geometry(history.size, LEAF, history.fan_out)
    disk = bytes(history.size)
    base: _WholeTree | BlankDisk = BlankDisk(geometry)
    for step in history.steps:
        disk, dirty = applied(disk, step)
        tree = _change(geometry, disk, dirty, base)
        base = _WholeTree(disk, geometry)
        assert tree.top == base.top
        assert tree.root == naive_root(disk, history.fan_out) == _dense_root(geometry, disk)


@settings(max_examples=15)
@given(histories(most_leaves=600, most_steps=2))
def test_the_root_is_right_for_trees_of_three_levels_of_sixteen(history: History) -> None:
    geometry = Geometry(history.size, LEAF, 16)
    disk = bytes(history.size)
    base: _WholeTree | BlankDisk = BlankDisk(geometry)
    for step in history.steps:
        disk, dirty = applied(disk, step)
        assert _change(geometry, disk, dirty, base).root == naive_root(disk, 16)
        base = _WholeTree(disk, geometry)


@given(histories(most_leaves=40))
def test_touched_nodes_are_stored_with_their_full_list_of_children(history: History) -> None:
    geometry = Geometry(history.size, LEAF, history.fan_out)
    disk = bytes(history.size)
    base: _WholeTree | BlankDisk = BlankDisk(geometry)
    for step in history.steps:
        disk, dirty = applied(disk, step)
        tree = _change(geometry, disk, dirty, base)
        base = _WholeTree(disk, geometry)
        for level in tree.levels:
            assert np.array_equal(level.children, base.children(level.level, level.nodes))
            assert level.nodes.tolist() == sorted(set(level.nodes.tolist()))


@given(histories(most_leaves=40, most_steps=1))
def test_the_nodes_above_every_dirty_leaf_of_data_are_all_stored(history: History) -> None:
    geometry = Geometry(history.size, LEAF, history.fan_out)
    disk, dirty = applied(bytes(history.size), history.steps[0])
    tree = _change(geometry, disk, dirty, BlankDisk(geometry))
    stored = {(level.level, node) for level in tree.levels for node in level.nodes.tolist()}
    for start, end in dirty:
        for leaf in range(start // LEAF, -(-end // LEAF)):
            if any(disk[leaf * LEAF : (leaf + 1) * LEAF]):
                for level in range(1, geometry.height + 1):
                    assert (level, leaf // geometry.fan_out**level) in stored


@given(places(70 * LEAF), st.sampled_from([2, 4, 16]))
def test_leaves_and_height_follow_from_the_size(size: int, fan_out: int) -> None:
    geometry = Geometry(size, LEAF, fan_out)
    levels = naive_levels(bytes(size), fan_out)
    assert geometry.height == len(levels) - 1
    assert geometry.leaves == -(-size // LEAF)
    full = naive_levels(bytes(LEAF * fan_out**geometry.height), fan_out)
    assert list(geometry.zeros) == [level[0] for level in full]


@given(places(40 * LEAF), st.sampled_from([2, 16]))
def test_a_disk_of_zeros_has_a_root_that_needs_no_data(size: int, fan_out: int) -> None:
    geometry = Geometry(size, LEAF, fan_out)
    blank = BlankDisk(geometry)
    assert geometry.root(blank.top) == naive_root(bytes(size), fan_out)
    untouched = build(geometry, *joined([], 16), Extents.empty(), blank)
    zeroed = build(geometry, *joined([], 16), Extents.whole(geometry.leaves), blank)
    assert untouched.root == zeroed.root == geometry.root(blank.top)
    assert untouched.levels == ()


def test_a_nodes_hash_depends_on_its_level() -> None:
    geometry = Geometry(100 * LEAF, LEAF, 2)
    assert geometry.node(1, b"x" * 32) != geometry.node(2, b"x" * 32)


def test_the_root_depends_on_size_leaf_size_and_fan_out() -> None:
    shapes = [
        Geometry(size, leaf_size, fan_out)
        for size in (10, 11, LEAF, LEAF + 1)
        for leaf_size in (4096, 8192)
        for fan_out in (2, 16)
    ]
    assert len({shape.root(b"\0" * 16) for shape in shapes}) == len(shapes)


def test_a_short_last_leaf_is_padded_but_its_size_is_told_by_the_root() -> None:
    assert naive_levels(b"abc", 16)[0] == naive_levels(b"abc\0", 16)[0]
    assert naive_root(b"abc", 16) != naive_root(b"abc\0", 16)


@pytest.mark.parametrize("size", [16 * TIB, 16 * TIB + 1, 16 * TIB - 65536 * 3, TIB + 512])
def test_zeroing_a_disk_of_terabytes_touches_only_its_ragged_edge(size: int) -> None:
    geometry = Geometry(size)
    tree = build(geometry, *joined([], 16), Extents.whole(geometry.leaves), BlankDisk(geometry))
    assert tree.root == geometry.root(geometry.zeros[geometry.height])
    assert sum(len(level.nodes) for level in tree.levels) <= geometry.height


def test_zeroing_part_of_a_huge_disk_stores_nodes_at_both_ends_only() -> None:
    geometry = Geometry(16 * TIB)
    spans = Extents.of([(5, geometry.leaves - 7)])
    tree = build(geometry, *joined([], 16), spans, BlankDisk(geometry))
    assert tree.root == geometry.root(geometry.zeros[geometry.height])
    assert all(len(level.nodes) <= 2 for level in tree.levels)


def test_one_leaf_of_a_huge_disk_costs_one_node_a_level() -> None:
    geometry = Geometry(16 * TIB)
    hashes = np.full((1, 16), 7, np.uint8)
    tree = build(geometry, np.array([12345]), hashes, Extents.empty(), BlankDisk(geometry))
    assert [len(level.nodes) for level in tree.levels] == [1] * geometry.height


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=8), st.data())
def test_runs_of_leaf_hashes_are_joined_in_the_order_of_the_disk(
    gaps_and_counts: list[tuple[int, int]], data: st.DataObject
) -> None:
    runs, leaf = [], 0
    expected: list[tuple[int, bytes]] = []
    for gap, count in gaps_and_counts:
        leaf += gap
        hashes = [bytes([len(expected) + n]) * 16 for n in range(count)]
        expected += [(leaf + n, one) for n, one in enumerate(hashes)]
        runs.append((leaf, b"".join(hashes)))
        leaf += count
    numbers, packed = joined(data.draw(st.permutations(runs)), 16)
    assert list(zip(numbers.tolist(), map(bytes, packed), strict=True)) == expected


@pytest.mark.parametrize(
    ("disk", "root"),
    [
        (b"", "ea87077b688f6c4538736fe0c9e1f8e4"),
        (b"a", "d2a37aa320e239b7412e777be8f4179b"),
        (bytes(65536 * 17 + 5), "a8e74257d883a445553823603fcac4b4"),
    ],
)
def test_the_roots_of_known_disks_never_change(disk: bytes, root: str) -> None:
    """Roots are names that people keep: another value here is another format."""
    geometry = Geometry(len(disk))
    if any(disk):
        leaf = np.frombuffer(naive_levels(disk, 16, 65536)[0][0], np.uint8).reshape(1, 16)
        tree = build(geometry, np.array([0]), leaf, Extents.empty(), BlankDisk(geometry))
    else:
        tree = build(geometry, *joined([], 16), Extents.empty(), BlankDisk(geometry))
    assert tree.root.hex() == naive_root(disk, 16, 65536).hex() == root
