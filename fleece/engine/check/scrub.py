"""Scrub: verify a part of a store at a time, what was longest unverified first."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece import events
from fleece.cancel import CancelToken
from fleece.durations import Duration
from fleece.engine.check.verify import Checker, problems_of
from fleece.errors import UsageError
from fleece.guests import GuestChoice, is_meant
from fleece.store import verified
from fleece.store.catalogue import Access, Catalogue, Entry

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class ScrubRules:
    """What a scrub reads.

    Attributes:
        max_age: leave out what was verified within this time; None: nothing is left out.
        fraction: stop when this part of the store's bytes has been read, more than 0 to 1; at least
            one delta is read, if any is due.
        guest: whose deltas.
    """

    max_age: Duration | None = None
    fraction: float = 1.0
    guest: GuestChoice = None


@dataclass(frozen=True)
class ScrubResult:
    """What a scrub found.

    Attributes:
        errors: one line for each thing that is wrong; empty: all that was looked at is well.
        deltas: how many were read and are sound.
        read_bytes: bytes of their files.
        due: how many deltas were due before.
        left: how many of these were not read, because the fraction was.
    """

    errors: tuple[str, ...]
    deltas: int
    read_bytes: int
    due: int
    left: int


def scrub(
    catalogue: Catalogue,
    rules: ScrubRules,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    now: datetime | None = None,
) -> ScrubResult:
    """Read what is due, every byte, and note beside each delta what came of it.

    Damaged files, missing deltas and incomplete points are errors in every run, whatever its part.
    A delta that failed before is read first, and until it is sound or gone.

    Args:
        catalogue: of the store.
        rules: what to read.
        listener: hears `DeltaChecked`, `Problem` and `Progress`.
        cancel: stops it; what was verified by then stays noted.
        now: by the clock, in UTC; None: look.

    Raises:
        UsageError: the fraction is none.
        StoreError: a verification cannot be noted, so the next run would not go on from here.
    """
    if not 0 < rules.fraction <= 1:
        raise UsageError("the fraction must be more than 0% and at most 100%")
    catalogue.named(rules.guest)
    now = now or datetime.now(UTC)
    mine = [e for e in catalogue.entries if is_meant(rules.guest, e.header.guest)]
    due = _due(catalogue.access, mine, rules, now)
    chosen = _part(due, rules.fraction * sum(entry.stored_bytes for entry in mine))
    check = Checker(catalogue, listener, cancel or CancelToken())

    def noted(key: str, stamp: str, sound: bool) -> None:
        verified.note(catalogue.access, key, stamp, verified.Verification(now, sound))

    check.noted = noted
    check.announce(sum(entry.data_bytes for entry in chosen))
    for problem in problems_of(catalogue, rules.guest):
        check.problem(problem)
    with contextlib.closing(check):
        for entry in chosen:
            check.delta(entry)
    errors = tuple(dict.fromkeys(check.errors))
    return ScrubResult(errors, check.deltas, check.read_bytes, len(due), len(due) - len(chosen))


def _due(access: Access, entries: list[Entry], rules: ScrubRules, now: datetime) -> list[Entry]:
    """The deltas that are due, the longest unverified first; of the same age, the oldest first."""
    before = now if rules.max_age is None else rules.max_age.before(now)
    aged = [(_verified(access, entry, now), entry) for entry in entries]
    due = [(time, entry) for time, entry in aged if time <= before]
    due.sort(key=lambda item: (item[0], item[1].header.point.sequence, item[1].key))
    return [entry for _, entry in due]


def _verified(access: Access, entry: Entry, now: datetime) -> datetime:
    """When a delta was last found sound; a failed verification is none."""
    found = verified.last(access, entry.key, now)
    return _NEVER if found is None or not found.sound else found.time


def _part(due: list[Entry], budget: float) -> list[Entry]:
    """The first of them, until their bytes reach the budget."""
    chosen: list[Entry] = []
    taken = 0
    for entry in due:
        if taken >= budget:
            break
        chosen.append(entry)
        taken += entry.stored_bytes
    return chosen
