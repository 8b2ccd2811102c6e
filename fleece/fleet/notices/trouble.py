"""What can be in trouble, and what a run found out about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import fleece
from fleece.errors import ExitCode, FleeceError, StoreError
from fleece.fleet.notices.kinds import Kind
from fleece.fleet.plan import Plan, PlannedGuest
from fleece.fleet.steps import GuestResult, Step, StepResult, Work

_AGE = "age"
_PLAN = "plan"


@dataclass(frozen=True, order=True)
class Matter:
    """What is well or in trouble, each for itself.

    Attributes:
        store: its name; empty: of no store.
        guest: or a host, if `store` is empty; empty, too: the run.
        step: of the run, or what else is looked at.
    """

    store: str
    guest: str
    step: str

    @property
    def named(self) -> str:
        """What people call it."""
        if not self.guest:
            return f"store {self.store}" if self.store else "the run"
        if self.store:
            return f"{self.guest} in store {self.store}"
        return f"{'guest' if self.step == _PLAN else 'host'} {self.guest}"


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong: of which kind, and what it is, in one line."""

    kind: Kind
    what: str


_RUN = Matter("", "", "run")


@dataclass(frozen=True)
class Findings:
    """What a run found out.

    Attributes:
        troubles: what is wrong.
        well: what was looked at, and is right.
        known: store and guest of all that are looked after; None: this run does not know them all.
    """

    troubles: Mapping[Matter, Trouble]
    well: frozenset[Matter]
    known: frozenset[tuple[str, str]] | None


def of_failure(error: FleeceError) -> Findings:
    """Of a run that failed before any guest had its turn."""
    return Findings({_RUN: Trouble(Kind.FAILURE, str(error))}, frozenset(), None)


def of_run(plan: Plan, work: Work, results: tuple[GuestResult, ...], whole: bool) -> Findings:
    """Of a run that gave each guest its turn.

    Args:
        plan: of it.
        work: likewise.
        results: what became of each guest.
        whole: all guests of the configuration were meant.
    """
    troubles = {
        Matter("", host, "host"): Trouble(Kind.FAILURE, str(error))
        for host, error in plan.unknown.items()
    }
    for name, error in plan.refused.items():
        troubles[Matter("", name, _PLAN)] = Trouble(Kind.FAILURE, str(error))
    well = {_RUN} | {Matter("", guest.name, _PLAN) for guest in plan.guests}
    well |= {Matter("", host, "host") for host in work.config.hosts if host not in plan.unknown}
    for result in results:
        for step in result.steps:
            matter = Matter(result.store, result.guest, step.step)
            if (trouble := _of_step(step)) is not None:
                troubles[matter] = trouble
            elif step.error is None and step.begun:
                well.add(matter)
    for matter, trouble in _ages(plan.guests, work):
        if trouble is None:
            well.add(matter)
        else:
            troubles[matter] = trouble
    known = {(guest.config.store.name, guest.name) for guest in plan.guests}
    complete = whole and not plan.troubles
    return Findings(troubles, frozenset(well), frozenset(known) if complete else None)


def _of_step(step: StepResult) -> Trouble | None:
    """What is wrong by a step; None: nothing, or it was interrupted, which says nothing."""
    error = step.error
    if error is None or error.code is ExitCode.INTERRUPTED:
        return None
    checked = step.step is Step.VERIFY and isinstance(error, StoreError) and not error.busy
    damage = checked or error.code is ExitCode.VERIFY
    return Trouble(Kind.DAMAGE if damage else Kind.FAILURE, str(error))


def _ages(guests: tuple[PlannedGuest, ...], work: Work) -> Iterator[tuple[Matter, Trouble | None]]:
    """What is too old, of the guests that say when that is."""
    aging = [guest for guest in guests if guest.config.stale_after is not None]
    for name in sorted({guest.config.store.name for guest in aging}):
        of_store = [guest for guest in aging if guest.config.store.name == name]
        try:
            secret, place = work.secrets.get(name), work.config.stores[name]
            with work.shelf.borrowed(place, secret, work.cancel) as store:
                known = {each.guest: each for each in fleece.status(store.catalogue()).guests}
        except FleeceError as error:
            yield Matter(name, "", _AGE), Trouble(Kind.FAILURE, str(error))
            continue
        yield Matter(name, "", _AGE), None
        for guest in of_store:
            yield Matter(name, guest.name, _AGE), _age(guest, known.get(guest.name))


def _age(guest: PlannedGuest, status: fleece.GuestStatus | None) -> Trouble | None:
    now = datetime.now(UTC)
    assert guest.config.stale_after is not None
    if status is None or status.age is None or status.time is None:
        return Trouble(Kind.STALE, "there is no good point")
    if status.age <= (now - guest.config.stale_after.before(now)).total_seconds():
        return None
    return Trouble(Kind.STALE, f"the newest good point is of {status.time}")
