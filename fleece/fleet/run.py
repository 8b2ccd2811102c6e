"""A run: what is due of all guests, several at once within the limits."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from fleece import events
from fleece.cancel import CancelToken
from fleece.errors import ExitCode, FleeceError, Interrupted
from fleece.fleet.plan import Plan, PlannedGuest
from fleece.fleet.steps import GuestResult, Work, look_after

_TICK = 0.2

_WORST = (
    ExitCode.INTERRUPTED,
    ExitCode.INTERNAL,
    ExitCode.VERIFY,
    ExitCode.STORE,
    ExitCode.POINT,
    ExitCode.SOURCE,
    ExitCode.TARGET,
    ExitCode.USAGE,
    ExitCode.NOTICE,
)
"""Exit codes, the worst first: what is stored goes before what could not be stored yet."""


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        guests: that were looked after, in the order of the configuration.
        error: the worst that happened; None: all is well.
    """

    guests: tuple[GuestResult, ...]
    error: FleeceError | None


Told = Callable[[GuestResult], None]


def run(
    plan: Plan,
    work: Work,
    told: Told,
) -> RunResult:
    """Do what is due of all planned guests. What fails of one keeps no other from its turn.

    Args:
        plan: the guests.
        work: what is asked for, and how. Its listener hears one call at a time. Once its token is
            set, what is underway is taken down, and nothing else is begun.
        told: hears what became of each guest, as soon as that is known.
    """
    lock = threading.Lock()

    def listen(guest: str, event: events.Event) -> None:
        with lock:
            work.listener(guest, event)

    alone = dataclasses.replace(work, listener=listen)
    found: dict[int, GuestResult] = {}
    for number, result in _turns(plan.guests, alone):
        found[number] = result
        with lock:
            told(result)
    results = tuple(found[number] for number in sorted(found))
    errors = [result.error for result in results if result.error is not None]
    errors += [error for _, error in plan.troubles]
    return RunResult(results, _worst(errors, work.cancel))


def _worst(errors: Sequence[FleeceError], cancel: CancelToken) -> FleeceError | None:
    if cancel.cancelled:
        return Interrupted()
    return min(errors, key=lambda error: _WORST.index(error.code), default=None)


def _turns(guests: Sequence[PlannedGuest], work: Work) -> Iterator[tuple[int, GuestResult]]:
    """Look after each guest once, the first that may begin first; gives its number and result."""
    waiting, running = dict(enumerate(guests)), dict[Future[GuestResult], int]()
    most = work.config.limits.at_once
    with ThreadPoolExecutor(most, "fleece-guest") as pool:
        while waiting or running:
            for number in _startable(guests, waiting, running.values(), most):
                if work.cancel.cancelled:
                    break
                running[pool.submit(look_after, waiting.pop(number), work)] = number
            if not running:
                return
            for future in wait(running, _TICK, FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _startable(
    guests: Sequence[PlannedGuest],
    waiting: Collection[int],
    running: Collection[int],
    most: int,
) -> list[int]:
    """The numbers of those that may begin now, by the limits of all, of their hosts and stores."""
    taken = Counter(slot for number in running for slot, _ in _slots(guests[number]))
    free = most - len(running)
    chosen: list[int] = []
    for number in waiting:
        if len(chosen) == free:
            break
        slots = _slots(guests[number])
        if all(limit is None or taken[slot] < limit for slot, limit in slots):
            chosen.append(number)
            taken.update(slot for slot, _ in slots)
    return chosen


def _slots(guest: PlannedGuest) -> tuple[tuple[tuple[str, str], int | None], ...]:
    """What a guest takes a place of, and how many places there are; None: any number."""
    host, store = guest.host, guest.config.store
    return (("host", host.name), host.at_once), (("store", store.name), store.at_once)
