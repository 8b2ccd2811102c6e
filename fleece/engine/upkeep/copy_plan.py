"""What a copy has to send, and in which order: by what two stores hold, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from fleece.engine.backup.identity import check_taken_in
from fleece.engine.work.pool import WORKERS
from fleece.errors import FleeceError, PointError, StoreError, UsageError
from fleece.guests import Shard, is_meant
from fleece.store.catalogue import Catalogue, Entry, StoredPoint
from fleece.store.marks import TagLists, tagged
from fleece.store.order import moment_of

PointName: TypeAlias = tuple[str, str, str]
"""Guest, chain and id: what a point is called in whatever store."""


@dataclass(frozen=True)
class CopyOptions:
    """Which points are copied, and how.

    What a chosen point builds on goes along, whatever the choice.

    Attributes:
        guests: whose points; none: everybody's.
        shard: of the guests, if none is named; None: all.
        tags: those that have all tags of any of these lists; none: all.
        last: the newest so many of each guest; None: all.
        since: those that were taken at this time or later; None: all.
        newer: of a chain of which the target has points, only those after its newest: what the
            target has dropped is not sent again.
        follow: go on with points that appear later, until it is cancelled.
        dry_run: only say what would be sent.
        rate: bytes of file a second at most, of all deltas together; None: as fast as can be.
        workers: threads; each carries one delta at a time.
        poll: seconds between two looks for new points.
    """

    guests: tuple[str, ...] = ()
    shard: Shard | None = None
    tags: TagLists = ()
    last: int | None = None
    since: datetime | None = None
    newer: bool = False
    follow: bool = False
    dry_run: bool = False
    rate: int | None = None
    workers: int = WORKERS
    poll: float = 5.0

    def means(self, guest: str) -> bool:
        """Whether a guest's points may be chosen."""
        return guest in self.guests if self.guests else is_meant(self.shard, guest)

    def check(self) -> None:
        """Raise `UsageError` for what means nothing."""
        for name, number in (("last", self.last), ("rate", self.rate), ("workers", self.workers)):
            if number is not None and number < 1:
                raise UsageError(f"--{name if name != 'workers' else 'jobs'} must be at least 1")
        if self.follow and self.dry_run:
            raise UsageError("a dry run does not follow: nothing is sent")
        if self.guests and self.shard is not None:
            raise UsageError("guests are named: there is no shard of them")


@dataclass
class GuestPlan:
    """What is to be done for one guest.

    Attributes:
        guest: its name.
        points: to send, the oldest first.
        had: the chosen points that the target has.
        problems: why points that were chosen cannot be sent.
    """

    guest: str
    points: list[StoredPoint] = field(default_factory=list)
    had: set[PointName] = field(default_factory=set)
    problems: list[FleeceError] = field(default_factory=list)


def name_of(point: StoredPoint) -> PointName:
    """What a point is called in whatever store."""
    return point.guest, point.chain, point.id


def plan(
    source: Catalogue,
    target: Catalogue,
    options: CopyOptions,
    passed: Collection[PointName] = (),
) -> list[GuestPlan]:
    """Compare two stores.

    Args:
        source: what there is.
        target: what it has of it.
        options: which points are chosen.
        passed: points that are not chosen: they were dealt with before.

    Raises:
        StoreError: the source has no point of a guest that is named.
    """
    there = dict.fromkeys(point.guest for point in source.named(options.shard))
    names = options.guests or tuple(there)
    return [_guest_plan(source, target, options, passed, guest) for guest in names]


def damage(source: Catalogue, options: CopyOptions) -> Iterator[StoreError]:
    """Files that are no whole deltas and may be of a guest that is copied."""
    for file in source.damaged:
        head = source.access.header(file.key)
        if head is None or options.means(head.guest):
            yield file.error


def _guest_plan(
    source: Catalogue,
    target: Catalogue,
    options: CopyOptions,
    passed: Collection[PointName],
    guest: str,
) -> GuestPlan:
    made = GuestPlan(guest)
    points = source.named(guest)
    there = target.of_guest(guest)
    whole = {name_of(point) for point in there}
    meant = tagged(source, points, options.tags)
    chosen = {name_of(p) for p in _chosen(meant, there, options)}.difference(passed)
    needed = set(chosen)
    # A parent comes before its child: backwards, what a point needs is known before it is met.
    for point in reversed(points):
        if name_of(point) in needed and not _has(target, point, whole):
            parents = (source.parent(e) for e in point.deltas.values() if not target.takes(e))
            needed |= {_name(parent) for parent in parents if parent is not None}
    chains = {point.chain for point in there}
    sent: set[PointName] = set()
    for point in points:
        if name_of(point) not in needed:
            continue
        if _has(target, point, whole):
            made.had |= {name_of(point)} & chosen
            continue
        try:
            _check_target(target, point, known=point.chain in chains)
            _check_source(source, target, point, sent)
        except FleeceError as error:
            made.problems.append(error)
        else:
            sent.add(name_of(point))
            made.points.append(point)
    return made


def _chosen(
    points: Sequence[StoredPoint], there: Sequence[StoredPoint], options: CopyOptions
) -> list[StoredPoint]:
    """The points that are asked for; incomplete ones too, which cannot be sent, unless they may
    still become whole."""
    found = [point for point in points if point.complete or not options.follow]
    if options.newer:
        newest: dict[str, int] = {}
        for known in there:
            newest[known.chain] = max(known.sequence, newest.get(known.chain, -1))
        found = [point for point in found if point.sequence > newest.get(point.chain, -1)]
    if options.since is not None:
        since = options.since
        moments = [(point, moment_of(point.time)) for point in found]
        found = [point for point, moment in moments if moment is None or moment >= since]
    return found if options.last is None else found[-options.last :]


def _name(entry: Entry) -> PointName:
    return entry.header.guest, entry.header.chain, entry.header.point.id


def _has(target: Catalogue, point: StoredPoint, whole: Collection[PointName]) -> bool:
    """Whether a target, whose complete points these are, has a point and what that builds on."""
    return name_of(point) in whole and all(
        any(copy.root == entry.root and target.takes(copy) for copy in target.copies(entry))
        for entry in point.deltas.values()
    )


def _check_target(target: Catalogue, point: StoredPoint, *, known: bool) -> None:
    """Raise an error if a target cannot take a point, of a chain that it knows or not."""
    for entry in point.deltas.values():
        copies = target.copies(entry)
        if copies and all(copy.root != entry.root for copy in copies):
            raise StoreError(
                f"has another root ({copies[0].root}) of point {point.id}, disk "
                f"{entry.header.disk}, than {entry.where} ({entry.root})",
                where=copies[0].where,
                hint="one of them is not what it says: 'fleece verify' both stores",
            )
    if any(map(target.copies, point.deltas.values())):
        raise StoreError(
            f"has a part of point {point.id}, or not all that it builds on",
            where=target.where,
            hint="'fleece verify' shows what is missing; 'fleece import' brings single deltas",
        )
    if not known:  # names repeat over many hosts
        try:
            check_taken_in(next(iter(point.deltas.values())).header, target)
        except PointError as error:
            raise PointError(
                error.what, where=target.where, hint="copy this guest into another store"
            ) from error


def _check_source(
    source: Catalogue, target: Catalogue, point: StoredPoint, sent: Collection[PointName]
) -> None:
    """Raise an error if a point cannot be sent behind those that are."""
    if point.missing:
        raise StoreError(
            f"point {point.id} is incomplete: no delta for {', '.join(point.missing)}",
            where=source.where,
        )
    for entry in point.deltas.values():
        if target.takes(entry):
            continue
        parent = source.parent(entry)
        if parent is None:
            source.check_line(entry)
        elif _name(parent) not in sent:
            raise StoreError(
                f"builds on point {parent.header.point.id}, which cannot be copied",
                where=entry.where,
            )
