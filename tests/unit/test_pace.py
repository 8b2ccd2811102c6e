"""A rate that threads keep together: the time is a made one."""

from __future__ import annotations

import random

import pytest

from fleece import pace
from fleece.cancel import CancelToken
from fleece.errors import Interrupted

MIB = 1 << 20


class _Clock:
    """Time that only sleeping and working let pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


@pytest.mark.parametrize("rate", [MIB // 3, 50 * MIB, 700 * MIB])
def test_the_rate_is_kept_whatever_each_read_costs(clock: _Clock, rate: int) -> None:
    """Up to the rate's own pace a read's time does not count, a slow one now and then neither."""
    chance = random.Random(1)
    kept, start, total = pace.Pace(rate, CancelToken()), clock.now, 0
    while total < 20 * rate:
        length = chance.randrange(1, 1 + MIB)
        kept.take(length)
        total += length
        clock.now += length / rate * chance.uniform(0, 0.9)
        clock.now += 0.2 if chance.random() < 0.001 else 0
    assert total / (clock.now - start) == pytest.approx(rate, rel=0.05)


def test_a_pause_is_not_made_up_for_by_a_burst(clock: _Clock) -> None:
    kept = pace.Pace(MIB, CancelToken())
    kept.take(MIB)
    clock.now += 100
    start = clock.now
    for _ in range(50):
        kept.take(MIB)
    assert clock.now - start > 48


def test_a_rate_that_changes_is_the_one_of_now(clock: _Clock) -> None:
    now: list[int | None] = [None]
    kept, begun = pace.Pace(lambda: now[0], CancelToken()), clock.now
    for rate, seconds in ((None, 0), (MIB, 50), (10 * MIB, 5), (None, 0)):
        now[0] = rate
        for _ in range(50):
            kept.take(MIB)
        assert clock.now - begun == pytest.approx(seconds, abs=1.5)
        begun = clock.now


def test_a_cancel_ends_the_waiting(clock: _Clock) -> None:
    cancel = CancelToken()
    kept = pace.Pace(1, cancel)
    kept.take(MIB)
    cancel.cancel()
    with pytest.raises(Interrupted):
        kept.take(1)
