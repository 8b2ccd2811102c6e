"""Status: how a store is, told without reading data."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from fleece.engine.check.verify import problems_of
from fleece.errors import StoreError
from fleece.store import keeping, verified
from fleece.store.catalogue import Catalogue, Entry, StoredPoint

GROWTH_DAYS = 30
"""The days over which growth is counted."""


@dataclass(frozen=True)
class GuestStatus:
    """How one guest's part of a store is.

    Attributes:
        guest: its name.
        points: how many are complete.
        point, time: id and time of the last good point; None: there is none. Good: complete, with
            all that it builds on, and nothing of that failed when it was last verified.
        age: of that point, in seconds.
        depth: deltas that the deepest of its disks is restored from.
        stored_bytes: of all deltas.
        growth_bytes: of those that the points of the last `GROWTH_DAYS` days added.
        verified: since when every delta has been verified: the time of the oldest of their last
            verifications; None: some were never, or failed.
        unverified: deltas that were never verified, or were changed since.
        failed: deltas that were not sound when they were last verified.
    """

    guest: str
    points: int
    point: str | None
    time: str | None
    age: float | None
    depth: int
    stored_bytes: int
    growth_bytes: int
    verified: str | None
    unverified: int
    failed: int


@dataclass(frozen=True)
class StoreStatus:
    """How a store is.

    Attributes:
        guests: by name.
        problems: one line for each thing that is known to be wrong; empty: nothing is.
        foreign: paths of what lies in the store and is not fleece's: it is ignored.
    """

    guests: tuple[GuestStatus, ...]
    problems: tuple[str, ...]
    foreign: tuple[str, ...]


def status(catalogue: Catalogue, now: datetime | None = None) -> StoreStatus:
    """Say how a store is, by headers, footers and what was noted of verifications.

    Where the storage knows what it had, what was taken away or hidden is a problem too.

    Args:
        catalogue: of the store.
        now: by the clock, in UTC; None: look.
    """
    now = now or datetime.now(UTC)
    return status_of(catalogue, past_of(catalogue, now), now)


Past: TypeAlias = Mapping[str, verified.Verification | None]
"""The last verification of each delta, by its key; None: there is none that can be relied on."""


def past_of(catalogue: Catalogue, now: datetime) -> Past:
    """Look up what was noted of verifications."""
    access = catalogue.access
    return {entry.key: verified.last(access, entry.key, now) for entry in catalogue.entries}


def status_of(catalogue: Catalogue, past: Past, now: datetime) -> StoreStatus:
    """How a store is, as far as its verifications are known."""
    access = catalogue.access
    problems = [str(problem) for problem in problems_of(catalogue)]
    for key, last in sorted(past.items()):
        if last is not None and not last.sound:
            where = access.backend.name(key)
            problems.append(f"{where}: was not sound when it was last verified, at {last.time}")
    problems += map(str, keeping.unaccounted(catalogue))
    entries: dict[str, list[Entry]] = {}
    for entry in catalogue.entries:
        entries.setdefault(entry.header.guest, []).append(entry)
    guests = tuple(_guest(catalogue, name, entries[name], past, now) for name in sorted(entries))
    return StoreStatus(guests, tuple(dict.fromkeys(problems)), catalogue.foreign)


def _guest(
    catalogue: Catalogue, guest: str, entries: list[Entry], past: Past, now: datetime
) -> GuestStatus:
    known = [past[entry.key] for entry in entries]
    sound = [last.time for last in known if last is not None and last.sound]
    points = catalogue.of_guest(guest)
    good, depth = _last_good(catalogue, points, past)
    recent = {point.id for point in points if _since(point, now) <= timedelta(GROWTH_DAYS)}
    return GuestStatus(
        guest,
        len(points),
        None if good is None else good.id,
        None if good is None else good.time,
        None if good is None else _since(good, now).total_seconds(),
        depth,
        sum(entry.stored_bytes for entry in entries),
        sum(entry.stored_bytes for entry in entries if entry.header.point.id in recent),
        min(sound).isoformat() if sound and len(sound) == len(entries) else None,
        known.count(None),
        sum(last is not None and not last.sound for last in known),
    )


def _since(point: StoredPoint, now: datetime) -> timedelta:
    """How old a point is; one that says no time, or one of the future, is new."""
    with contextlib.suppress(StoreError):
        return max(now - point.moment, timedelta())
    return timedelta()


def _last_good(
    catalogue: Catalogue, points: list[StoredPoint], past: Past
) -> tuple[StoredPoint | None, int]:
    """The newest good point, and the depth of its deepest line."""

    sound: set[str] = set()
    doubtful: set[str] = set()

    def good(entry: Entry) -> bool:
        """Whether nothing of a line failed; what is known of a delta's line is not looked for."""
        seen: list[str] = []
        at: Entry | None = entry
        while at is not None and at.key not in sound:
            last = past[at.key]
            seen.append(at.key)
            if at.key in doubtful or (last is not None and not last.sound):
                doubtful.update(seen)
                return False
            at = catalogue.parent(at)
        sound.update(seen)
        return True

    for point in reversed(points):
        with contextlib.suppress(StoreError):
            depth = max(catalogue.depth(entry) for entry in point.deltas.values())
            if all(good(entry) for entry in point.deltas.values()):
                return point, depth
    return None, 0
