"""Plan a point for a consumer: its disks, what changed on each, what is kept after a commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleece.engine.export.options import ExportOptions
from fleece.engine.export.token import Base, chain_of
from fleece.errors import PointError, UsageError
from fleece.source.base import (
    Disk,
    HeldElsewhere,
    KeepsBitmaps,
    Request,
    Since,
    Source,
    TransportWish,
    Unknown,
    Wanted,
)


@dataclass(frozen=True)
class Planned:
    """A disk of the point.

    Attributes:
        disk: as the inventory shows it.
        since: what was written since the base; None: all is to be read.
        reason: why it is read so.
    """

    disk: Disk
    since: Since | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """A point that is to be taken.

    Attributes:
        made: its names.
        base: the point that is built on, if any disk is.
        disks: all of them.
        oldest: sequence of the oldest point that is kept as a base when this one is committed;
            None: this one.
        ttl: seconds that it is held at most.
    """

    made: Base
    base: Base | None
    disks: tuple[Planned, ...]
    oldest: int | None
    ttl: float

    @property
    def request(self) -> Request:
        """What the source is asked for."""
        wanted = [Wanted(planned.disk, planned.since) for planned in self.disks]
        return Request(self.made.chain_id, self.made.sequence, self.made.point, wanted)


def refuse_foreign(source: Source) -> None:
    """Refuse a source whose points somebody else holds.

    Raises:
        UsageError: it is one.
    """
    if isinstance(source, HeldElsewhere):
        raise UsageError(
            "a point of this kind of source is somebody else's to begin and to end",
            where=source.where,
            hint="what it is served by can be read as it is",
        )


def plan_export(source: Source, options: ExportOptions) -> Plan:
    """Choose disks and decide for each; nothing is changed.

    Raises:
        FleeceError: what was asked for is impossible.
    """
    chain_id = chain_of(options.consumer)
    base = None if options.since is None else Base.parse(options.since)
    if base is not None and base.chain_id != chain_id:
        raise UsageError(
            f"it is no base of the consumer {options.consumer}",
            where=options.since,
            hint="--name is who has the point of --since",
        )
    disks = source.inventory().choose(options.disks)
    _check_pull(source, disks)
    planned = tuple(_planned(source, disk, base, options) for disk in disks)
    sequence = source.highest_sequence(chain_id, disks) + 1
    if base is not None:
        sequence = max(sequence, base.sequence + 1)
    made = Base.new(chain_id, sequence, disks)
    built = base if any(each.since is not None for each in planned) else None
    oldest = _oldest(source, chain_id, base, options.keep_bases)
    return Plan(made, built, planned, oldest, options.ttl)


def _check_pull(source: Source, disks: Sequence[Disk]) -> None:
    """Refuse what cannot be served to anybody.

    Raises:
        PointError: a disk cannot.
    """
    try:
        source.transport(TransportWish.PULL, disks)
    except PointError as error:
        raise PointError(
            error.what, where=error.where, hint="'fleece backup' can back it up all the same"
        ) from error


def _planned(source: Source, disk: Disk, base: Base | None, options: ExportOptions) -> Planned:
    if base is None:
        return Planned(disk, None, "asked for" if options.full else "no base is named")
    if not base.has(disk):
        return Planned(disk, None, "the base lacks it, or had it with another size")
    known = source.known_since(disk, base.chain_id, base.sequence, base.point)
    if isinstance(known, Unknown):
        return Planned(disk, None, known.reason)
    return Planned(disk, known, f"changed since point {base.point}")


def _oldest(source: Source, chain_id: str, base: Base | None, keep: int) -> int | None:
    """The sequence of the oldest point that stays a base.

    What the source has between the base and now was never committed, or is lost to the consumer:
    else it would build on that.
    """
    if keep == 1 or not isinstance(source, KeepsBitmaps):
        return None
    found = {kept.sequence for kept in source.bitmaps() if kept.chain_id == chain_id}
    bases = sorted(each for each in found if base is None or each <= base.sequence)
    return min(bases[-(keep - 1) :], default=None)
