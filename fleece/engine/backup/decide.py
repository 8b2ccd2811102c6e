"""Decide, for one disk, how its next delta is found (`Mode`), and why."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fleece.delta.header import Mode
from fleece.errors import PointError, StoreError
from fleece.extents import Extents
from fleece.source.base import Disk, Since, Source, Unknown
from fleece.store.catalogue import Catalogue, Entry, StoredPoint


class ModeWish(enum.StrEnum):
    """What the caller asks for."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    RESCAN = "rescan"


@dataclass(frozen=True)
class Decision:
    """How one disk will be read.

    Attributes:
        disk: the disk.
        mode: of its delta.
        reason: one line for the user.
        parent: the delta that the new one builds on; None: full.
        since: what was written since the newest stored point; None: read all.
        more_dirty: what changed between the parent and that point, in bytes of disk.

    With a parent and without `since`, what changed is found by the chain's hashes.
    """

    disk: Disk
    mode: Mode
    reason: str
    parent: Entry | None = None
    since: Since | None = None
    more_dirty: Extents | None = None


@dataclass(frozen=True)
class Auditable:
    """A disk of which some leaves are said to be what the store holds.

    Attributes:
        disk: the disk.
        newest: its delta at the newest point that it can be compared with.
        since: what was written since.
    """

    disk: Disk
    newest: Entry
    since: Since


@dataclass(frozen=True)
class Lineage:
    """A guest's chain, as the store and the source know it.

    Attributes:
        source: knows what was written since its points.
        catalogue: of the store.
        guest, chain_id: whose points count.
    """

    source: Source
    catalogue: Catalogue
    guest: str
    chain_id: str

    def newest_first(self, disk: Disk) -> list[StoredPoint]:
        """The chain's complete points that have the disk."""
        points = self.catalogue.of_chain(self.guest, self.chain_id)
        return [point for point in points if disk.name in point.disks][::-1]

    def names(self) -> set[str]:
        """Of all disks that the chain has a point of."""
        points = self.catalogue.of_chain(self.guest, self.chain_id)
        return {name for point in points for name in point.disks}

    def usable(self, entry: Entry) -> Entry | None:
        """The same delta, if all that it builds on is there; else None."""
        return entry if _broken(self.catalogue, entry) is None else None


def auditable(disk: Disk, lineage: Lineage) -> Auditable:
    """What an audit can compare a disk with.

    Raises:
        PointError: nothing; the source does not know what was written since a stored point.
    """
    found = _newest_usable(disk, lineage)
    if isinstance(found, Unknown):
        raise PointError(
            f"disk {disk.name}: there is nothing to audit: {found.reason}",
            hint="the next backup reads all of it; --disk names the disks to audit",
        )
    return Auditable(disk, *found)


def decide(disk: Disk, wish: ModeWish, lineage: Lineage, distrust: str | None = None) -> Decision:
    """Decide for one disk.

    Args:
        disk: the disk.
        wish: what the caller asks for.
        lineage: the chain that it goes into.
        distrust: why what the source knows of it must not be believed; None: it may.

    Raises:
        PointError: what was asked for is impossible.
    """
    if wish is ModeWish.FULL:
        return Decision(disk, Mode.FULL, "asked for")
    if wish is ModeWish.RESCAN:
        return _rescan(disk, lineage, "asked for", must=True)
    found = _newest_usable(disk, lineage) if distrust is None else Unknown(distrust)
    if isinstance(found, Unknown):
        if wish is not ModeWish.AUTO:
            raise impossible(disk.name, wish, found.reason)
        return _rescan(disk, lineage, found.reason)
    newest, since = found
    if wish is ModeWish.DIFFERENTIAL:
        return _differential(disk, lineage.catalogue, newest, since)
    reason = f"changed since point {newest.header.point.id}"
    return Decision(disk, Mode.INCREMENTAL, reason, newest, since)


def impossible(disk: str, wish: ModeWish, reason: str) -> PointError:
    """The error that says why what was asked for cannot be had."""
    return PointError(
        f"disk {disk}: no {wish} backup is possible: {reason}",
        hint="--mode auto reads everything instead",
    )


def _rescan(disk: Disk, lineage: Lineage, reason: str, *, must: bool = False) -> Decision:
    """Read everything, store what the newest whole line does not hold; without one: a full."""
    for point in lineage.newest_first(disk):
        entry = point.disks[disk.name]
        if _broken(lineage.catalogue, entry) is None:
            return Decision(disk, Mode.RESCAN, reason, entry)
    if must:
        raise PointError(
            f"disk {disk.name}: no rescan is possible: the store has no whole point of it",
            hint="--mode auto stores everything instead",
        )
    return Decision(disk, Mode.FULL, reason)


def _newest_usable(disk: Disk, lineage: Lineage) -> tuple[Entry, Since] | Unknown:
    """The newest stored point since which all is known of a disk, or why there is none."""
    first: Unknown | None = None
    source, chain_id, names = lineage.source, lineage.chain_id, lineage.names()
    for point in lineage.newest_first(disk):
        entry = point.disks[disk.name]
        unknown = _unfit(disk, lineage.catalogue, entry)
        if unknown is None:
            known = source.known_since(disk, chain_id, point.sequence, point.id, names)
            if not isinstance(known, Unknown):
                return entry, known
            unknown = known
        first = first or unknown
    return first or Unknown("the store has no point of this disk yet")


def needed_since(disk: Disk, lineage: Lineage) -> int | None:
    """The sequence of the point since which a next backup must know what was written.

    It is the newest stored one since which that is known. If none is now (a bitmap is busy, a file
    in the store is being put back), it is the newest that has the disk.

    Returns:
        None: the store has no point of the disk.
    """
    found = _newest_usable(disk, lineage)
    if not isinstance(found, Unknown):
        return found[0].header.point.sequence
    stored = lineage.newest_first(disk)
    return stored[0].sequence if stored else None


def _unfit(disk: Disk, catalogue: Catalogue, entry: Entry) -> Unknown | None:
    """Why a stored delta cannot be a parent now, whatever the source knows."""
    if entry.header.size != disk.size:
        return Unknown(f"the disk's size changed from {entry.header.size} to {disk.size} bytes")
    return _broken(catalogue, entry)


def _broken(catalogue: Catalogue, entry: Entry) -> Unknown | None:
    try:
        catalogue.check_line(entry)
    except StoreError as error:
        return Unknown(f"its chain in the store is broken: {error}")
    return None


def _differential(disk: Disk, catalogue: Catalogue, newest: Entry, since: Since) -> Decision:
    """Build on the line's full: what changed is what its deltas hold and `since` tells.

    So the source need not know what was written since the full.
    """
    line = catalogue.line(newest)
    full = line[-1]
    more = Extents.empty()
    for entry in line[:-1]:
        with catalogue.open(entry) as delta:
            more = more.union(delta.extents())
    reason = f"changed since the full of point {full.header.point.id}"
    return Decision(disk, Mode.DIFFERENTIAL, reason, full, since, more.clip(0, disk.size))
