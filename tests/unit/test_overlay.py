"""The map of many deltas laid over one another: right, and at a cost that follows their records."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from fleece.delta.chain import overlay
from fleece.extents import Extents, Int64Array
from tests.unit.kit import LEAF, Change, History, OpenChain, read_back, store_history


def _history(seed: int, leaves: int, steps: int, most: int) -> History:
    chance = random.Random(seed)

    def change() -> Change:
        start = chance.randrange(leaves)
        end = min(leaves, start + chance.choice([1, 1, 1, 2, 7]))
        return Change(start * LEAF, end * LEAF, chance.choice([0, *range(1, 256)]))

    changes = [tuple(change() for _ in range(chance.randint(1, most))) for _ in range(steps)]
    return History(leaves * LEAF, 16, tuple(changes))


@pytest.mark.parametrize("seed", range(3))
def test_what_many_deltas_hold_together_is_the_disk(seed: int, tmp_path: Path) -> None:
    stored = store_history(tmp_path, _history(seed, 64, 40, 6), seed)
    with OpenChain([item.path for item in reversed(stored)]) as chain:
        assert read_back(chain) == stored[-1].disk
        picture = chain.map()
        owners = [*picture.of_owners(len(chain.deltas))]
        assert len(owners) == len(chain.deltas)
        for number, mine in enumerate(owners):
            assert np.flatnonzero(picture.owner == number).tolist() == mine.tolist()
        run = chain.deltas[5:25]
        held = overlay(run, Extents.of([(5 * LEAF, 40 * LEAF + 7)]))
        newest = {
            leaf: number
            for number, delta in reversed([*enumerate(run)])
            for start, end in delta.extents()
            for leaf in range(start // LEAF, -(-end // LEAF))
            if 5 <= leaf <= 40
        }
        for start, end, owner in zip(held.start, held.end, held.owner, strict=True):
            for leaf in range(start // LEAF, -(-end // LEAF)):
                assert newest.pop(leaf) == owner
        assert newest == {}


def test_the_cost_of_a_map_follows_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the deltas, of as many records each: not sixty-four times the work."""
    handled = 0
    normal = Extents.normal

    def counted(start: Int64Array, end: Int64Array) -> Extents:
        nonlocal handled
        handled += len(start)
        return normal(start, end)

    costs = []
    for steps in (25, 200):
        folder = tmp_path / str(steps)
        folder.mkdir()
        stored = store_history(folder, _history(1, 4096, steps, 4), 1, longest=1)
        with OpenChain([item.path for item in reversed(stored)]) as chain:
            chain.map()
            monkeypatch.setattr(Extents, "normal", staticmethod(counted))
            handled = 0
            overlay(chain.deltas[:-1], Extents.whole(chain.geometry.size))
            costs.append(handled)
            monkeypatch.setattr(Extents, "normal", staticmethod(normal))
    assert costs[1] < 20 * costs[0]
