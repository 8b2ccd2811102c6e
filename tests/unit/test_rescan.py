"""What a chain holds, and which leaves of a read are new to it."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.engine.backup import unchanged as rescan
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.engine.work.reads import read_items
from fleece.extents import Extents
from fleece.tree import Geometry, Run, changed_runs
from tests.unit.kit import LEAF, History, OpenChain, histories, naive_levels, store_history


@given(history=histories(), picked=st.sets(st.integers(0, 12)), together=st.integers(1, 3))
def test_the_chains_leaves_are_those_of_its_newest_disk(
    history: History, picked: set[int], together: int
) -> None:
    """From the first to the last, or some; over the bounds of look-ups."""
    with tempfile.TemporaryDirectory() as name:
        stored = store_history(Path(name), history)
        disk = stored[-1].disk
        with (
            OpenChain([item.path for item in reversed(stored)]) as chain,
            mock.patch.object(rescan, "_BLOCK", history.fan_out),
            mock.patch.object(rescan, "_TOGETHER", together),
        ):
            held = HeldLeaves(chain)
            leaves = naive_levels(disk, 2)[0]  # of an empty disk: one blank leaf
            for first, last in itertools.combinations(range(-(-len(disk) // LEAF) + 1), 2):
                found = held.hashes(first * LEAF, min(last * LEAF, len(disk)))
                assert found.tobytes() == b"".join(leaves[first:last])
            whole = Extents.whole(len(disk))
            some = Extents.of((at * LEAF, (at + 1) * LEAF) for at in picked)
            items = [*read_items(some.clip(0, len(disk)), gap=LEAF)]
            beside = [*held.beside(iter(items))]
            assert [item for item, _ in beside] == items
            for item, hashes in beside:
                first, last = item.start // LEAF, -(-item.end // LEAF)
                assert hashes.tobytes() == b"".join(leaves[first:last])
            for start, end in whole.subtract(held.not_yet_zero(whole)):
                assert not any(disk[start:end])


@given(
    same=st.lists(st.booleans(), min_size=1, max_size=16),
    tail=st.integers(1, LEAF),
    zero=st.booleans(),
)
def test_only_leaves_that_differ_are_kept(same: list[bool], tail: int, zero: bool) -> None:
    count, width = len(same), 16
    length = (count - 1) * LEAF + tail
    shape = Geometry(5 * LEAF + length, LEAF)
    mine = shape.zeros[0] * count if zero else bytes(range(1, 17)) * count
    held = np.frombuffer(mine, np.uint8).reshape(count, width).copy()
    held[np.flatnonzero(~np.array(same)), 3] ^= 1
    run = Run(5 * LEAF, length, None if zero else mine)
    kept = list(changed_runs(run, held, shape))
    wanted = [
        (5 * LEAF + n * LEAF, 5 * LEAF + min((n + 1) * LEAF, length))
        for n, is_same in enumerate(same)
        if not is_same
    ]
    assert Extents.of([(part.offset, part.offset + part.length) for part in kept]) == Extents.of(
        wanted
    )
    for part in kept:
        leaves = -(-part.length // LEAF)
        assert part.hashes == (None if zero else bytes(range(1, 17)) * leaves)


def test_another_number_of_hashes_than_of_leaves_is_refused() -> None:
    """numpy would compare a single one with all leaves, and call changed ones unchanged."""
    run = Run(0, 2 * LEAF, bytes(32))
    with pytest.raises(ValueError, match="reshape"):
        list(changed_runs(run, np.zeros((1, 16), np.uint8), Geometry(2 * LEAF, LEAF)))
