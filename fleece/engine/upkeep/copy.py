"""Copy points from one store into another, whatever kinds of stores they are.

The target's guests are locked, the source is only read. A point keeps its name, its chain and its
sequence: its deltas are the same in both stores, so either store's points can be built on, pruned
and merged by themselves.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fleece import events
from fleece.cancel import CancelToken
from fleece.engine.upkeep.copy_plan import (
    CopyOptions,
    GuestPlan,
    PointName,
    damage,
    name_of,
    plan,
)
from fleece.engine.upkeep.transit import Transit
from fleece.engine.work.pool import Counter
from fleece.errors import FleeceError, Interrupted, StoreError, UsageError
from fleece.pace import Pace
from fleece.store.backend import Patience
from fleece.store.catalogue import Catalogue, StoredPoint
from fleece.store.marks import note_tags, noted_tags
from fleece.store.store import Store

_PATIENCE = 60.0
"""Seconds to wait for a guest's lock: another copy, a backup or a prune may hold it."""

_ROUNDS = 10
"""How often a copy looks again at a source that changes under it."""

_LIKE = "'fleece init --like' makes a store that takes the deltas of another"


@dataclass(frozen=True)
class SentPoint:
    """A point that was copied, or would be.

    Attributes:
        guest, point, time: which.
        disks: names of its disks.
        stored_bytes: of its files in the source, those of parts too.
    """

    guest: str
    point: str
    time: str
    disks: tuple[str, ...]
    stored_bytes: int

    @staticmethod
    def of(point: StoredPoint) -> SentPoint:
        """Describe a point of the source."""
        size = sum(entry.stored_bytes for entry in point.deltas.values())
        return SentPoint(point.guest, point.id, point.time, tuple(sorted(point.disks)), size)


@dataclass(frozen=True)
class CopyReport:
    """What was done, or would be.

    Attributes:
        points: that were sent, or would be.
        had: how many of the chosen points the target had already.
        errors: one line for each thing that is wrong; empty: all that was chosen is there.
        dry_run: nothing was changed.
    """

    points: tuple[SentPoint, ...]
    had: int
    errors: tuple[str, ...]
    dry_run: bool


def copy(
    source: Store,
    target: Store,
    options: CopyOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> CopyReport:
    """Send the points that a store lacks, oldest first; those that it has are never sent again.

    Goes on after a failure of a point, to send the others. The caller decides what errors mean.

    Args:
        source: is only read.
        target: takes them; with another key they are encrypted anew, without being compressed.
        options: which points; None: all.
        listener: hears `Arrived`, `Problem`, `Leftover` and `Progress`.
        cancel: stops it; each point is there whole or not at all. With `follow` it is the end.

    Raises:
        UsageError: the stores are the same, or the target cannot take the source's deltas; nothing
            was sent.
        StoreError: a store cannot be read or written, or the target is in use; what has arrived
            stays.
    """
    options = options or CopyOptions()
    options.check()
    check_alike(source, target)
    work = _Copy(source, target, options, listener, cancel or CancelToken())
    if options.follow:
        work.follow()
    else:
        work.once()
    return work.report()


def check_alike(source: Store, target: Store) -> None:
    """Check that a store can take another one's deltas without compressing or hashing them again.

    Raises:
        UsageError: it cannot, or it is the same store.
    """
    mine, other = source.protection, target.protection
    if source.id == target.id:
        raise UsageError(f"is the same store as {source.where}", where=target.where)
    if source.algorithm.name != target.algorithm.name:
        raise UsageError(
            f"has the hash {target.algorithm.name}; the deltas of {source.where} have "
            f"{source.algorithm.name}, and all of a disk would have to be hashed again",
            where=target.where,
            hint=_LIKE,
        )
    if source.algorithm.keyed and (mine is None or other is None or mine.key != other.key):
        raise UsageError(
            f"has another key, and the hashes of the deltas of {source.where} are made with theirs",
            where=target.where,
            hint=_LIKE,
        )
    if mine is not None and mine.encrypted and (other is None or not other.encrypted):
        raise UsageError(
            f"is not encrypted, as {source.where} is: what is secret there would not be here",
            where=target.where,
            hint="make it with --encrypt, or by 'fleece init --like'",
        )


class _Copy:
    """One run: rounds of comparing both stores and sending what is missing."""

    def __init__(
        self,
        source: Store,
        target: Store,
        options: CopyOptions,
        listener: events.Listener,
        cancel: CancelToken,
    ) -> None:
        self._source, self._target, self._options = source, target, options
        self._listener, self._cancel = events.in_turn(listener), cancel
        self._only = options.guests[0] if len(options.guests) == 1 else None
        self._pace = None if options.rate is None else Pace(options.rate, cancel)
        self._sent: list[StoredPoint] = []
        self._had: set[PointName] = set()
        self._errors: dict[str, None] = {}

    def report(self) -> CopyReport:
        """What came of it."""
        points = tuple(map(SentPoint.of, self._sent))
        had = self._had.difference(map(name_of, self._sent))
        return CopyReport(points, len(had), tuple(self._errors), self._options.dry_run)

    def once(self) -> None:
        """Send what is there now."""
        self._until_still(())

    def follow(self) -> None:
        """Send what is there and what appears, until it is cancelled."""
        passed: set[PointName] = set()
        seen: list[str] | None = None
        with contextlib.suppress(Interrupted):
            while True:
                self._cancel.check()
                listed = sorted(self._source.backend.listing().deltas)
                if listed != seen:
                    passed |= self._until_still(passed)
                seen = listed
                end = time.monotonic() + self._options.poll
                while (left := end - time.monotonic()) > 0:
                    self._cancel.check()
                    time.sleep(min(left, 0.1))

    def _until_still(self, passed: Collection[PointName]) -> set[PointName]:
        """Send what is missing; gives the points that were looked at.

        Raises:
            StoreError: a store failed, or the source does not stop changing.
        """
        for _ in range(_ROUNDS):
            catalogue = self._source.catalogue(self._only)
            if not self._round(catalogue, passed):
                return {name_of(point) for point in catalogue.points if point.complete}
        raise StoreError(
            "changes faster than it can be copied: deltas were replaced or removed meanwhile",
            where=self._source.where,
            hint="copy when no prune or merge runs there",
        )

    def _round(self, catalogue: Catalogue, passed: Collection[PointName]) -> bool:
        """Compare, and send; gives whether the source changed meanwhile."""
        options = self._options
        for error in damage(catalogue, options):
            self._problem(error)
        known = self._target.catalogue(self._only)
        plans = plan(catalogue, known, options, passed)
        if options.dry_run or not any(one.points for one in plans):
            self._note(plans)
            self._sent += [point for one in plans for point in one.points]
            if not options.dry_run:
                self._carry_tags(catalogue, known, plans)
            return False
        with self._locked(sorted(one.guest for one in plans if one.points)):
            known = self._target.catalogue(self._only)
            plans = plan(catalogue, known, options, passed)
            self._note(plans)
            changed = self._send(plans, known)
        self._carry_tags(catalogue, known, plans)
        return changed

    def _send(self, plans: Sequence[GuestPlan], known: Catalogue) -> bool:
        points = [point for one in plans for point in one.points]
        for guest in dict.fromkeys(point.guest for point in points):
            for path in self._target.remove_copies(guest):
                self._listener(events.Leftover("unfinished point", path))
        self._warn_of_bitmaps(points)
        total = sum(SentPoint.of(point).stored_bytes for point in points)
        counter = Counter(self._listener, events.Phase.COPY, self._target.where, total)

        def took(count: int) -> None:
            self._cancel.check()
            if self._pace is not None:
                self._pace.take(count)
            counter.add(count)

        transit = Transit(self._source, self._target, known, self._listener, self._cancel, took)
        try:
            transit.run(plans, self._options.workers)
        finally:
            self._sent += transit.arrived
            for error in transit.problems:
                self._errors.setdefault(str(error))
        return bool(transit.changed)

    def _carry_tags(
        self, catalogue: Catalogue, known: Catalogue, plans: Sequence[GuestPlan]
    ) -> None:
        """Note in the target what was made of points' tags in the source since their backups.

        What the target has noted itself stays. So a copy that was killed before this is made up
        for by the next one.
        """
        chosen = {name_of(point) for one in plans for point in one.points}
        chosen |= {name for one in plans for name in one.had}
        points = [point for point in catalogue.points if name_of(point) in chosen]
        there = {name_of(point): point for point in known.points}
        for point in points:
            try:
                tags = noted_tags(catalogue, point)
                if tags is None or (
                    name_of(point) in there and noted_tags(known, there[name_of(point)]) is not None
                ):
                    continue
                with self._locked([point.guest]):
                    known = self._target.catalogue(point.guest)
                    there = {name_of(each): each for each in known.points}
                    mine = there.get(name_of(point))
                    if mine is not None and noted_tags(known, mine) is None:
                        note_tags(known, mine, tags)
            except StoreError as error:
                text = f"the tags of point {point.id} were not copied: {error}"
                self._listener(events.Warned(text))

    @contextlib.contextmanager
    def _locked(self, guests: Sequence[str]) -> Iterator[None]:
        seconds = math.inf if self._options.follow else _PATIENCE
        with contextlib.ExitStack() as stack:
            for guest in guests:
                held = self._target.locked(guest, Patience(seconds, self._cancel))
                stack.enter_context(held)
            yield

    def _warn_of_bitmaps(self, points: Sequence[StoredPoint]) -> None:
        """A note that a disk's bitmaps missed a write goes where its chain goes."""
        disks = {(point.chain, disk) for point in points for disk in point.disks}
        for chain, disk in sorted(disks):
            reason = self._source.distrusted(chain, disk)
            if reason is not None and self._target.distrusted(chain, disk) is None:
                self._target.distrust(chain, disk, reason)

    def _note(self, plans: Sequence[GuestPlan]) -> None:
        for one in plans:
            self._had |= one.had
            for error in one.problems:
                self._problem(error)

    def _problem(self, error: FleeceError) -> None:
        if str(error) not in self._errors:
            self._errors[str(error)] = None
            self._listener(events.Problem(error.where or self._source.where, error.what))
