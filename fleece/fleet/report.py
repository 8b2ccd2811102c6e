"""What a report tells of a fleet: what the stores know, and what the configuration asks for."""

from __future__ import annotations

import enum
import heapq
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import fleece
from fleece.cancel import CancelToken
from fleece.errors import FleeceError
from fleece.terminal import counted, local_time, span

_GRACE = 0.25
"""Of `every`: so much later than it is due, a point is overdue. A timer has to come round first."""
_CELLS = 256
"""Of the picture of a disk."""
_MOST_DISKS = 8
"""Of a guest, that are drawn."""


class State(enum.IntEnum):
    """How something is, the best first."""

    GOOD = 0
    WATCH = 1
    BAD = 2

    @property
    def word(self) -> str:
        """For people, who may see no colour."""
        return ("good", "look", "trouble")[self]


@dataclass(frozen=True)
class Trouble:
    """Something that somebody should do something about.

    Attributes:
        state: how bad it is.
        what: it is.
        todo: what to do.
    """

    state: State
    what: str
    todo: str


@dataclass(frozen=True)
class Asked:
    """What a configuration asks for a guest in a store.

    Attributes:
        every: it is due again so long after its newest point; None: in each run.
        stale_after: its newest good point must not be older; None: it may.
        copied: its points are copied there, from another store of the file.
    """

    every: fleece.Duration | None = None
    copied: bool = False
    stale_after: fleece.Duration | None = None


@dataclass(frozen=True)
class Subject:
    """A store to be told of.

    Attributes:
        name: of it, for people.
        place: where it is, as a command line has it.
        open: opens it.
        guests: that a configuration has in it; None: there is no configuration.
    """

    name: str
    place: str
    open: Callable[[], fleece.Store]
    guests: Mapping[str, Asked] | None = None


@dataclass(frozen=True)
class Limits:
    """How much a report may take.

    Attributes:
        max_age: a guest whose last good point is older is in trouble, whatever the configuration
            says of it; None: as that says.
        maps: of so many guests of each store the disks are drawn, those that grew most.
    """

    max_age: fleece.Duration | None = None
    maps: int = 20


@dataclass(frozen=True)
class DiskMap:
    """What a disk is made of.

    Attributes:
        disk: its name.
        picture: of it; None: it cannot be drawn.
        error: why; None: it can.
    """

    disk: str
    picture: fleece.Picture | None
    error: str | None = None


@dataclass(frozen=True)
class GuestReport:
    """A guest in a store.

    Attributes:
        name: its name.
        asked: what a configuration asks for; None: it asks for nothing, or there is none.
        past: what the store knows; None: it has never heard of it.
        due: when its next point is due; None: nobody says.
        trouble: the worst first.
        maps: of its disks; none: they are not drawn.
    """

    name: str
    asked: Asked | None
    past: fleece.GuestHistory | None
    due: datetime | None
    trouble: tuple[Trouble, ...]
    maps: tuple[DiskMap, ...] = ()

    @property
    def state(self) -> State:
        """The worst of its troubles."""
        return max((each.state for each in self.trouble), default=State.GOOD)


@dataclass(frozen=True)
class StoreReport:
    """A store.

    Attributes:
        name, place: as the subject has them.
        error: why it cannot be told of; None: it can.
        guests: by name.
        trouble: of no guest's, the worst first.
        configured: a configuration says which guests it should have.
    """

    name: str
    place: str
    error: FleeceError | None
    guests: tuple[GuestReport, ...] = ()
    trouble: tuple[Trouble, ...] = ()
    configured: bool = False


@dataclass(frozen=True)
class Report:
    """All that a report tells.

    Attributes:
        made: when.
        stores: in their order.
        unknown: hosts whose guests could not be asked for, and why.
    """

    made: datetime
    stores: tuple[StoreReport, ...]
    unknown: Mapping[str, FleeceError] = field(default_factory=dict)

    @property
    def guests(self) -> tuple[GuestReport, ...]:
        """Of all stores."""
        return tuple(guest for store in self.stores for guest in store.guests)

    def count(self, state: State) -> int:
        """How many guests are like that."""
        return sum(guest.state is state for guest in self.guests)


def report(
    subjects: Sequence[Subject],
    limits: Limits,
    cancel: CancelToken,
    unknown: Mapping[str, FleeceError] | None = None,
    now: datetime | None = None,
) -> Report:
    """Look at stores. One that cannot be read keeps no other from being told of.

    Args:
        subjects: the stores.
        limits: how much it may take.
        cancel: stops it.
        unknown: hosts whose guests could not be asked for, and why.
        now: by the clock, in UTC; None: look.

    Raises:
        Interrupted: it was cancelled.
    """
    now = now or datetime.now(UTC)
    stores = tuple(_store(subject, limits, cancel, now) for subject in subjects)
    return Report(now, stores, unknown or {})


def _store(subject: Subject, limits: Limits, cancel: CancelToken, now: datetime) -> StoreReport:
    cancel.check()
    try:
        catalogue = subject.open().catalogue()
        cancel.check()
        told = fleece.history(catalogue, now)
    except FleeceError as error:
        cancel.check()
        trouble = Trouble(
            State.BAD,
            f"it cannot be read: {error}",
            f"see what 'fleece list {shlex.quote(subject.place)}' says",
        )
        return StoreReport(subject.name, subject.place, error, (), (trouble,))
    past = {guest.status.guest: guest for guest in told.guests}
    asked = subject.guests or {}
    guests = [
        _guest(subject, name, past.get(name), asked.get(name), limits, now)
        for name in sorted(past.keys() | asked.keys())
    ]
    largest = heapq.nlargest(limits.maps, past.values(), lambda one: one.status.growth_bytes)
    drawn = {one.status.guest for one in largest}
    return StoreReport(
        subject.name,
        subject.place,
        None,
        tuple(
            replace(one, maps=_maps(catalogue, one, cancel)) if one.name in drawn else one
            for one in guests
        ),
        tuple(_of_store(subject, told.status)),
        subject.guests is not None,
    )


def _of_store(subject: Subject, status: fleece.StoreStatus) -> Iterator[Trouble]:
    if status.problems:
        yield Trouble(
            State.BAD,
            f"{counted(len(status.problems), 'problem')}; the first: {status.problems[0]}",
            f"'fleece status {shlex.quote(subject.place)}' lists them",
        )


def _guest(
    subject: Subject,
    name: str,
    past: fleece.GuestHistory | None,
    asked: Asked | None,
    limits: Limits,
    now: datetime,
) -> GuestReport:
    due = _due(past, asked)
    trouble = [*_of_guest(subject, name, past, asked)]
    if past is not None and past.status.age is not None:
        trouble += _late(name, past.status.age, due, asked, limits, now)
    trouble.sort(key=lambda each: -each.state)
    return GuestReport(name, asked, past, due, tuple(trouble))


def _due(past: fleece.GuestHistory | None, asked: Asked | None) -> datetime | None:
    """When the next point of a guest is due, if that is said."""
    if past is None or asked is None or asked.every is None or past.status.time is None:
        return None
    try:
        newest = datetime.fromisoformat(past.status.time)
        return newest + _length(asked.every, newest)
    except (ValueError, OverflowError):
        return None


def _length(duration: fleece.Duration, moment: datetime) -> timedelta:
    return moment - duration.before(moment)


def _of_guest(
    subject: Subject, name: str, past: fleece.GuestHistory | None, asked: Asked | None
) -> Iterator[Trouble]:
    """What is wrong with what a store has of a guest."""
    if past is None:
        step = "copy" if asked is not None and asked.copied else "backup"
        yield Trouble(
            State.BAD,
            "the configuration asks for it, and there is no point of it",
            f"'fleece run --only {step}' makes one, or says why not",
        )
        return
    status = past.status
    verify = f"'fleece verify {shlex.quote(subject.place)} --guest {shlex.quote(name)}'"
    if status.point is None:
        yield Trouble(
            State.BAD,
            "no point of it can be relied on",
            f"{verify} tells what is left; then back it up with --mode full",
        )
    if status.failed:
        yield Trouble(
            State.BAD,
            f"{counted(status.failed, 'delta')} failed the last verification",
            f"{verify} tells which points need them; then as docs/howto/damaged.rst says",
        )
    if past.drills and past.drills[-1].error is not None:
        yield Trouble(
            State.BAD,
            f"the last drill failed: {past.drills[-1].error}",
            f"{verify} tells whether it is damaged; 'fleece drill --guest {shlex.quote(name)}' "
            "tries again",
        )
    if broken := sum(not told.point.complete for told in past.points):
        yield Trouble(
            State.WATCH,
            f"{counted(broken, 'incomplete point')}",
            "bring the missing deltas back, or have prune remove them",
        )
    for disk, reason in past.distrusted.items():
        yield Trouble(
            State.WATCH,
            f"an audit found a missed write on disk {disk}: {reason}",
            "the next backup reads all of that disk; find out what wrote past QEMU",
        )
    if any(told.marks.trouble is not None for told in past.points):
        yield Trouble(
            State.WATCH, "tags of its points cannot be told", "'fleece tag --set' writes them anew"
        )


def _late(
    name: str,
    age: float,
    due: datetime | None,
    asked: Asked | None,
    limits: Limits,
    now: datetime,
) -> Iterator[Trouble]:
    """Whether the last good point of a guest is too old."""
    todo = f"'fleece run {shlex.quote(name)}' makes one, or says why not; so does the journal"
    if asked is None:
        todo = "see whether it is still backed up, and why that fails"
    since = f"the last good point is {span(age)} old"
    if due is not None and asked is not None and asked.every is not None:
        grace = _length(asked.every, due) * _GRACE
        if now > due + grace:
            when = local_time(due.isoformat(timespec="seconds"))
            yield Trouble(State.BAD, f"{since}; the next one was due at {when}", todo)
            return
    most = limits.max_age or (None if asked is None else asked.stale_after)
    if most is not None and now - timedelta(seconds=age) < most.before(now):
        yield Trouble(State.BAD, since, todo)


def _maps(
    catalogue: fleece.Catalogue, guest: GuestReport, cancel: CancelToken
) -> tuple[DiskMap, ...]:
    """The pictures of a guest's disks at its last good point."""
    newest = None if guest.past is None else guest.past.status.point
    if newest is None:
        return ()
    point = catalogue.find(newest, guest.name)
    found: list[DiskMap] = []
    for name, entry in sorted(point.disks.items())[:_MOST_DISKS]:
        cancel.check()
        try:
            with catalogue.chain(entry) as chain:
                found.append(DiskMap(name, fleece.picture_of(chain, _CELLS)))
        except FleeceError as error:
            found.append(DiskMap(name, None, str(error)))
    return tuple(found)
