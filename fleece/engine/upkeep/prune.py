"""Drop the points that no rule keeps, without ever endangering one that stays.

First every kept delta that builds on dropped ones takes their content in (`upkeep/merge.py`),
each by one rename; only then the dropped points go, the newest first, each by one rename. So at
every moment each point that is in the store is whole, and a run that was killed is finished by the
next one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import check_fit
from fleece.engine.upkeep.merge import merge_disk
from fleece.engine.upkeep.retention import KeepRules, choose
from fleece.errors import StoreError
from fleece.guests import GuestChoice
from fleece.store import keeping, rewrite
from fleece.store.catalogue import Catalogue, Entry, StoredPoint, point_key
from fleece.store.lines import OpenLines
from fleece.store.marks import tagged
from fleece.store.store import Store

PINNED = "pinned"
TAGGED = "tag"
OTHER_TAGS = "not of these tags"
SHARED = "several points build on it"
NEEDED = "a kept point builds on it"

_HINT = "nothing was deleted; put it back, or remove by hand what is lost for good"


@dataclass(frozen=True)
class PlannedPoint:
    """What becomes of one point.

    Attributes:
        guest, point, time: which.
        stored_bytes: of its files, copies too.
        reasons: why it stays; empty: it goes.
        merges: name of a disk or part -> number of deltas that its delta will stand for, where
            more than one.
    """

    guest: str
    point: str
    time: str
    stored_bytes: int
    reasons: tuple[str, ...]
    merges: dict[str, int]


@dataclass(frozen=True)
class PruneResult:
    """What was done, or would be.

    Attributes:
        points: all points that were looked at, by guest, oldest first.
        kept, removed: how many.
        removed_bytes: of files that went.
        freed_bytes: by how much the store shrank; what was merged forward stays. None: dry run.
        dry_run: nothing was changed.
    """

    points: tuple[PlannedPoint, ...]
    kept: int
    removed: int
    removed_bytes: int
    freed_bytes: int | None
    dry_run: bool


@dataclass(frozen=True)
class _GuestPlan:
    """One guest's part: what to merge and what to drop, the newest first."""

    guest: str
    points: tuple[PlannedPoint, ...]
    merges: tuple[tuple[Entry, int], ...]
    drops: tuple[tuple[StoredPoint, list[str], int], ...]


def prune(
    store: Store,
    rules: KeepRules,
    guest: GuestChoice = None,
    *,
    dry_run: bool = False,
    merging: bool | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> PruneResult:
    """Keep what the rules say, of one guest, of those of a shard or of each; drop the rest.

    Pinned points stay, and the newest of each disk does. So does a point on which several kept
    deltas build: its content would have to be stored several times.

    Args:
        store: to shrink.
        rules: what to keep.
        guest: whose points; of several, those of each guest by itself.
        dry_run: only say what would be done.
        merging: what kept points need of dropped ones is merged into them; else these stay, too.
            None: where that costs no traffic.
        listener: hears `Merged`, `Dropped` and `Progress`.
        cancel: stops it between two steps.

    Raises:
        UsageError: the rules keep nothing.
        StoreError: not all of the store can be read, or not all is there. Nothing was deleted.
    """
    rules.check()
    cancel = cancel or CancelToken()
    only = guest if isinstance(guest, str) else None
    names = sorted({point.guest for point in store.catalogue(only).named(guest)})
    with contextlib.ExitStack() as stack:
        for name in names:
            held = store.locked(name)
            if dry_run:
                with held:  # it would be refused: so this is, but it keeps no backup from running
                    continue
            stack.enter_context(held)
        catalogue = store.catalogue(only)
        _all_was_read(catalogue)
        merges = store.backend.near if merging is None else merging
        plans = [_plan(catalogue, name, rules, merging=merges) for name in names]
        freed = None if dry_run else _carry_out(store, catalogue, plans, listener, cancel)
    points = tuple(point for plan in plans for point in plan.points)
    gone = [point for point in points if not point.reasons]
    lost = sum(point.stored_bytes for point in gone)
    return PruneResult(points, len(points) - len(gone), len(gone), lost, freed, dry_run)


def _plan(catalogue: Catalogue, guest: str, rules: KeepRules, *, merging: bool) -> _GuestPlan:
    _all_is_there(catalogue, guest)
    points = catalogue.of_guest(guest)
    kept = _kept_by_rules(catalogue, points, rules)
    _keep_locked(catalogue, points if merging else _others(points, kept), kept)
    if merging:
        _keep_shared(catalogue, points, kept)
    else:
        _keep_needed(catalogue, points, kept)
    merges = {
        (point.id, name): (entry, count)
        for point in points
        if point.id in kept
        for name, entry in point.deltas.items()
        if (count := 1 + len(list(_dropped(catalogue, entry, kept)))) > 1
    }
    sizes = {point.id: _stored_bytes(catalogue, point) for point in points}
    planned = tuple(
        PlannedPoint(
            guest,
            point.id,
            point.time,
            sizes[point.id],
            kept.get(point.id, ()),
            {
                name: merges[point.id, name][1]
                for name in point.deltas
                if (point.id, name) in merges
            },
        )
        for point in points
    )
    drops = tuple(
        (point, rewrite.places_of(catalogue, point), sizes[point.id])
        for point in reversed(points)
        if point.id not in kept
    )
    # The newest first: a merged delta is not below one whose line was read before.
    plan = _GuestPlan(guest, planned, tuple(reversed(merges.values())), drops)
    _can_be_done(catalogue, plan)
    return plan


def _kept_by_rules(
    catalogue: Catalogue, points: Sequence[StoredPoint], rules: KeepRules
) -> dict[str, tuple[str, ...]]:
    """Why the rules and people keep points, by id.

    Raises:
        StoreError: the tags or the pin of one cannot be told.
    """
    meant = tagged(catalogue, points, rules.only)
    kept = choose(meant, rules, datetime.now(UTC))
    wanted = {point.id for point in tagged(catalogue, meant, rules.tags)} if rules.tags else set()
    names = {point.id for point in meant}
    for point in points:
        reasons = [] if point.id in names else [OTHER_TAGS]
        reasons += [TAGGED] if point.id in wanted else []
        reasons += [PINNED] if rewrite.is_pinned(catalogue, point) else []
        if reasons:
            kept[point.id] = (*kept.get(point.id, ()), *reasons)
    return kept


def _others(
    points: Sequence[StoredPoint], kept: dict[str, tuple[str, ...]]
) -> Sequence[StoredPoint]:
    return [point for point in points if point.id not in kept]


def _keep_locked(
    catalogue: Catalogue, points: Sequence[StoredPoint], kept: dict[str, tuple[str, ...]]
) -> None:
    """Keep each of some points that nobody can delete now, with what it builds on.

    Its deltas stay as they are, so nothing is merged into them.
    """
    locked = keeping.kept_points(catalogue, points)
    for name, why in locked.items():
        kept[name] = (*kept.get(name, ()), str(why))
    _keep_needed(catalogue, [point for point in points if point.id in locked], kept)


def _can_be_done(catalogue: Catalogue, plan: _GuestPlan) -> None:
    """Find out before the first change, or without one, what would end a prune.

    Raises:
        StoreError: a folder cannot be written, or deltas that are to be merged do not fit.
    """
    backend = catalogue.access.backend
    changed = {point_key(entry) for entry, _ in plan.merges}
    gone = {place for _, places, _ in plan.drops for place in places}
    changed |= gone | {place.partition("/")[0] for place in gone}
    for key in sorted(changed):
        if not backend.writable(key):
            raise StoreError(
                "cannot be written",
                where=backend.name(key),
                hint="nothing was deleted; look at its mode",
            )
    for entry, count in plan.merges:
        child = entry
        for _ in range(count):
            parent = catalogue.parent(child)
            if parent is not None:
                check_fit(child.header, parent.header, parent.root, (child.where, parent.where))
                child = parent


def _stored_bytes(catalogue: Catalogue, point: StoredPoint) -> int:
    copies = (copy for entry in point.deltas.values() for copy in catalogue.copies(entry))
    return sum(copy.stored_bytes for copy in copies)


def _all_was_read(catalogue: Catalogue) -> None:
    """Refuse to delete while a file, of whatever guest, cannot be read or is damaged.

    Raises:
        StoreError: there is one.
    """
    if catalogue.damaged:
        count, first = len(catalogue.damaged), catalogue.damaged[0].error
        raise StoreError(
            f"{count} damaged or unreadable: {first}", where=catalogue.where, hint=_HINT
        )


def _all_is_there(catalogue: Catalogue, guest: str) -> None:
    """Refuse to delete by a listing that may lack something.

    Raises:
        StoreError: a point or a line is incomplete.
    """
    for point in catalogue.named(guest):
        if point.missing:
            raise StoreError(
                f"point {point.id} is incomplete: no delta for {', '.join(point.missing)}",
                where=catalogue.where,
                hint=_HINT,
            )
        for entry in point.deltas.values():
            catalogue.check_line(entry)


def _dropped(
    catalogue: Catalogue, entry: Entry, kept: dict[str, tuple[str, ...]]
) -> Iterator[Entry]:
    """The dropped deltas right below one."""
    below = catalogue.parent(entry)
    while below is not None and below.header.point.id not in kept:
        yield below
        below = catalogue.parent(below)


def _keep_shared(
    catalogue: Catalogue, points: Sequence[StoredPoint], kept: dict[str, tuple[str, ...]]
) -> None:
    """Keep, the newest first, each point that more than one kept delta would have to take in.

    A parent's sequence is below its child's, so all that builds on a delta is known before it.
    """
    heads = {entry.key for point in points for entry in point.deltas.values()}
    takers: Counter[str] = Counter()
    for _, same in itertools.groupby(_newest_first(catalogue, points), key=_sequence):
        entries = list(same)
        for entry in entries:
            if entry.header.point.id not in kept and takers[entry.key] > 1:
                kept[entry.header.point.id] = (SHARED,)
        for entry in entries:
            stays = entry.header.point.id in kept
            parent = catalogue.parent(entry)
            if parent is not None:
                takers[parent.key] += int(entry.key in heads) if stays else takers[entry.key]


def _keep_needed(
    catalogue: Catalogue, points: Sequence[StoredPoint], kept: dict[str, tuple[str, ...]]
) -> None:
    """Keep each point on which a kept one builds."""
    for entry in _newest_first(catalogue, [point for point in points if point.id in kept]):
        kept.setdefault(entry.header.point.id, (NEEDED,))


def _newest_first(catalogue: Catalogue, points: Sequence[StoredPoint]) -> list[Entry]:
    """All deltas of some points' lines, each once, by descending sequence."""
    found: dict[str, Entry] = {}
    for point in points:
        for entry in point.deltas.values():
            at: Entry | None = entry
            while at is not None and at.key not in found:
                found[at.key] = at
                at = catalogue.parent(at)
    return sorted(found.values(), key=_sequence, reverse=True)


def _sequence(entry: Entry) -> int:
    return entry.header.point.sequence


def _carry_out(
    store: Store,
    catalogue: Catalogue,
    plans: Sequence[_GuestPlan],
    listener: events.Listener,
    cancel: CancelToken,
) -> int:
    """Merge, look again, drop; gives the bytes that were freed."""
    for plan in plans:
        for path in rewrite.tidy(catalogue, plan.guest):
            listener(events.Leftover("unfinished file", path))
    freed = 0
    for plan in plans:
        with OpenLines(catalogue) as lines:
            for entry, count in plan.merges:
                cancel.check()
                merged = merge_disk(lines, entry, count, listener, cancel)
                freed += entry.stored_bytes - merged.stored_bytes
    now = store.catalogue(plans[0].guest if len(plans) == 1 else None)
    _all_was_read(now)
    for plan in plans:
        _nothing_needs(now, plan)
    for plan in plans:
        for point, places, size in plan.drops:
            cancel.check()
            for kept in rewrite.drop(catalogue.access.backend, places):
                listener(
                    events.Warned(f"{kept}: holds files of point {point.id} that are not fleece's")
                )
            freed += size
            listener(events.Dropped(point.guest, point.id, size))
    return freed


def _nothing_needs(catalogue: Catalogue, plan: _GuestPlan) -> None:
    """By what the store says now, no point that stays builds on one that goes.

    Raises:
        StoreError: one does, or not all can be read; nothing was deleted.
    """
    _all_is_there(catalogue, plan.guest)
    going = {point.id for point, _, _ in plan.drops}
    staying = [point for point in catalogue.of_guest(plan.guest) if point.id not in going]
    for entry in _newest_first(catalogue, staying):
        if entry.header.point.id in going:
            raise StoreError(
                f"a point that is kept still builds on point {entry.header.point.id}",
                where=entry.where,
                hint="nothing was deleted; run prune again",
            )


def set_pin(
    store: Store, point: str, guest: str | None = None, *, pinned: bool = True
) -> StoredPoint:
    """Protect a point from prune, or end that.

    Raises:
        StoreError: there is no such point, or it cannot be written.
    """
    guest = store.catalogue().find(point, guest).guest
    with store.locked(guest):
        catalogue = store.catalogue()
        found = catalogue.find(point, guest)
        change: Callable[[Catalogue, StoredPoint], object] = (
            rewrite.pin if pinned else rewrite.unpin
        )
        change(catalogue, found)
    return found
