"""Try a call again while it may succeed, with growing pauses, for so long and no longer."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fleece.cancel import CancelToken
from fleece.errors import StoreError
from fleece.store.s3.client.problems import Again

T = TypeVar("T")

_FIRST, _MOST = 0.2, 10.0
"""Seconds of the first pause and of the longest; each is twice the one before, less up to half."""

_TICK = 0.2


def _sleep(seconds: float, cancel: CancelToken) -> None:
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0:
        cancel.check()
        time.sleep(min(_TICK, rest))
    cancel.check()


@dataclass(frozen=True)
class Clock:
    """What tells and passes the time.

    Attributes:
        now: seconds of it.
        sleep: lets so many pass, unless the run is cancelled.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float, CancelToken], None] = _sleep


@dataclass(frozen=True)
class Perseverance:
    """How long a call is tried.

    Attributes:
        seconds: once the server has answered anything.
        strange: while it has not: then the address may be wrong.
        silence: that is borne within a try, after which it has failed.
        clock: tells the time between tries.
    """

    seconds: float = 300.0
    strange: float = 10.0
    silence: float = 60.0
    clock: Clock = Clock()


class Tries:
    """How a call went so far.

    Attributes:
        count: of tries that failed.
        lost: whether one of them may have been done, although it got no good answer.
    """

    def __init__(self) -> None:
        self.count = 0
        self.lost = False


class Persistent:
    """Tries calls to one server.

    Args:
        perseverance: how long.
    """

    def __init__(self, perseverance: Perseverance) -> None:
        self._how = perseverance
        self._met = False

    def __call__(self, call: Callable[[], T], cancel: CancelToken, tries: Tries) -> T:
        """Call until it does not raise `Again`.

        Args:
            call: it.
            cancel: ends the pauses.
            tries: becomes how the tries before the last one went.

        Raises:
            Interrupted: the run was cancelled.
            StoreError: it was tried for long enough.
        """
        clock = self._how.clock
        begun = clock.now()
        for count in itertools.count(1):
            cancel.check()
            try:
                found = call()
            except Again as failure:
                self._met = self._met or failure.met
                tries.count, tries.lost = count, tries.lost or failure.lost
                pause = max(_pause(count), failure.after)
                limit = self._how.seconds if self._met else self._how.strange
                spent = clock.now() - begun
                if spent + pause > limit:
                    raise _given_up(failure.error, count, spent) from failure
            else:
                self._met = True
                return found
            clock.sleep(pause, cancel)
        raise AssertionError


def _pause(count: int) -> float:
    most = min(_MOST, _FIRST * 2.0 ** min(count - 1, 10))
    return most * random.uniform(0.5, 1)


def _given_up(error: StoreError, count: int, spent: float) -> StoreError:
    what = f"{error.what}, {count} times in {spent:.0f} s" if count > 1 else error.what
    return StoreError(what, where=error.where, hint=error.hint)
