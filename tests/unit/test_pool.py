"""How work is shared out among workers."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleece.engine.pool import spread

MOST = 64


@given(st.lists(st.booleans(), max_size=2000))
def test_everything_is_in_one_batch(short: list[bool]) -> None:
    """A long thing is a batch of its own, and both kinds keep their order."""
    batches = spread(np.array(short, bool))
    numbers = list(itertools.chain.from_iterable(batches))
    assert sorted(numbers) == list(range(len(short)))
    for kind in (False, True):
        mine = [number for number in numbers if short[number] == kind]
        assert mine == sorted(mine)
    for batch in batches:
        assert len(batch) == 1 or all(short[number] for number in batch)
    many = [len(batch) for batch in batches if short[batch[0]]]
    assert many[:-1] == [MOST] * (len(many) - 1)
    assert all(count <= MOST for count in many)


@given(st.integers(0, 40), st.integers(0, 40))
def test_both_kinds_are_evenly_spread(many: int, long: int) -> None:
    """Wherever one stops, as large a part of the one kind is done as of the other."""
    batches = spread(np.array([True] * many * MOST + [False] * long, bool))
    done = {True: 0, False: 0}
    for batch in batches:
        done[len(batch) == MOST] += 1
        if many and long:
            assert abs(done[True] * long - done[False] * many) <= max(many, long)
