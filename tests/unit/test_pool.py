"""How work is shared out among workers."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.cancel import CancelToken
from fleece.engine.work.pool import Counter, run_workers, spread
from fleece.events import Event, Phase, Progress
from tests.rig.process import LIMIT

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


def _workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fleece-")]


class OneFails:
    """Two workers: one fails, and the other goes on until `ended` is set.

    Attributes:
        failed: is set a moment before the first one fails.
    """

    def __init__(self) -> None:
        self.failed, self.ended = threading.Event(), threading.Event()
        self._both = threading.Barrier(2)

    def work(self, items: Iterator[int]) -> None:
        number = next(items)
        self._both.wait(LIMIT)
        if number == 0:
            self.failed.set()
            raise ZeroDivisionError
        assert self.ended.wait(LIMIT)


def test_the_watch_goes_on_until_the_last_worker_has_ended() -> None:
    """What it watches over is there for as long as somebody works on it."""
    pair, looks = OneFails(), itertools.count()

    def watch() -> None:
        if pair.failed.is_set() and next(looks) == 5:
            pair.ended.set()

    with pytest.raises(ZeroDivisionError):
        run_workers(range(2), pair.work, CancelToken(), 2, watch)
    assert pair.ended.is_set()


def test_the_first_error_is_told_whatever_the_watch_says_later() -> None:
    pair, looks = OneFails(), itertools.count()

    def watch() -> None:
        if pair.failed.is_set() and next(looks) > 5:
            raise LookupError

    def stop() -> None:
        if next(looks) > 9:
            pair.ended.set()

    with pytest.raises(ZeroDivisionError):
        run_workers(range(2), pair.work, CancelToken(), 2, watch, stop)


def test_an_interrupt_of_the_waiting_thread_leaves_no_worker() -> None:
    calls = itertools.count()

    def work(items: Iterator[int]) -> None:
        for _ in items:
            pass

    def watch() -> None:
        if next(calls) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(itertools.count(), work, CancelToken(), 3, watch)
    assert _workers() == []


def test_a_real_interrupt_leaves_no_worker_either() -> None:
    """While the calling thread waits for the first one, which is the last to hear of it."""
    at_work, ended = itertools.count(), itertools.count()

    def work(items: Iterator[int]) -> None:
        for _ in items:
            if next(at_work) == 8:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.5 if threading.current_thread().name == "fleece-0" else 0.1)
        next(ended)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_workers(itertools.count(), work, CancelToken(), 3, lambda: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert next(ended) == 3


def test_what_is_counted_while_the_listener_blocks_is_told_afterwards() -> None:
    told: list[int] = []
    entered, free = threading.Event(), threading.Event()

    def listen(event: Event) -> None:
        assert isinstance(event, Progress)
        entered.set()
        assert free.wait(LIMIT)
        told.append(event.done)

    counter = Counter(listen, Phase.BACKUP, "d0", 3)
    counter.count(1)
    teller = threading.Thread(target=counter.tell)
    teller.start()
    assert entered.wait(LIMIT)
    counter.count(2)
    free.set()
    teller.join()
    counter.tell()
    counter.tell()
    assert told == [1, 3]
