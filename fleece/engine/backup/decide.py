"""Decide, for one disk, how its next delta is found (`Mode`), and why."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fleece.delta.header import Mode
from fleece.errors import PointError, StoreError
from fleece.extents import Extents
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.segments import Lost, written_since
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
        bitmaps: whose union is what was written since the newest stored point; None: read all.
        more_dirty: what changed between the parent and that point, in bytes of disk.

    With a parent and without bitmaps, what changed is found by the chain's hashes.
    """

    disk: GuestDisk
    mode: Mode
    reason: str
    parent: Entry | None = None
    bitmaps: tuple[str, ...] | None = None
    more_dirty: Extents | None = None


@dataclass(frozen=True)
class Auditable:
    """A disk of which some leaves are said to be what the store holds.

    Attributes:
        disk: the disk.
        newest: its delta at the newest point that it can be held against.
        bitmaps: whose union is what was written since.
    """

    disk: GuestDisk
    newest: Entry
    bitmaps: tuple[str, ...]


def auditable(disk: GuestDisk, catalogue: Catalogue, guest: str, chain: str) -> Auditable:
    """What an audit can hold a disk against.

    Raises:
        PointError: nothing; QEMU does not know what was written since a stored point.
    """
    found = _newest_usable(disk, catalogue, guest, chain)
    if isinstance(found, Lost):
        raise PointError(
            f"disk {disk.name}: there is nothing to audit: {found.reason}",
            hint="the next backup reads all of it; --disk names the disks to audit",
        )
    return Auditable(disk, *found)


def decide(
    disk: GuestDisk,
    wish: ModeWish,
    catalogue: Catalogue,
    guest: str,
    chain: str,
    distrust: str | None = None,
) -> Decision:
    """Decide for one disk.

    Args:
        disk: the disk.
        wish: what the caller asks for.
        catalogue: of the store.
        guest, chain: whose points count.
        distrust: why its bitmaps must not be believed (`Store.distrusted`); None: they may.

    Raises:
        PointError: what was asked for is impossible.
    """
    if wish is ModeWish.FULL:
        return Decision(disk, Mode.FULL, "asked for")
    if wish is ModeWish.RESCAN:
        return _rescan(disk, catalogue, guest, chain, "asked for", must=True)
    found = _newest_usable(disk, catalogue, guest, chain) if distrust is None else Lost(distrust)
    if isinstance(found, Lost):
        if wish is not ModeWish.AUTO:
            raise impossible(disk.name, wish, found.reason)
        return _rescan(disk, catalogue, guest, chain, found.reason)
    newest, bitmaps = found
    if wish is ModeWish.DIFFERENTIAL:
        return _differential(disk, catalogue, newest, bitmaps)
    reason = f"changed since point {newest.header.point.id}"
    return Decision(disk, Mode.INCREMENTAL, reason, newest, bitmaps)


def impossible(disk: str, wish: ModeWish, reason: str) -> PointError:
    """The error that says why what was asked for cannot be had."""
    return PointError(
        f"disk {disk}: no {wish} backup is possible: {reason}",
        hint="--mode auto reads everything instead",
    )


def _rescan(
    disk: GuestDisk,
    catalogue: Catalogue,
    guest: str,
    chain: str,
    reason: str,
    *,
    must: bool = False,
) -> Decision:
    """Read everything, store what the newest whole line does not hold; without one: a full."""
    for point in _newest_first(disk, catalogue, guest, chain):
        entry = point.disks[disk.name]
        if _broken(catalogue, entry) is None:
            return Decision(disk, Mode.RESCAN, reason, entry)
    if must:
        raise PointError(
            f"disk {disk.name}: no rescan is possible: the store has no whole point of it",
            hint="--mode auto stores everything instead",
        )
    return Decision(disk, Mode.FULL, reason)


def _newest_first(
    disk: GuestDisk, catalogue: Catalogue, guest: str, chain: str
) -> list[StoredPoint]:
    """The chain's complete points that have the disk."""
    points = [p for p in catalogue.of_chain(guest, chain) if disk.name in p.disks]
    return points[::-1]


def _newest_usable(
    disk: GuestDisk, catalogue: Catalogue, guest: str, chain: str
) -> tuple[Entry, tuple[str, ...]] | Lost:
    """The newest stored point that the disk's segments lead back to, or why there is none."""
    first: Lost | None = None
    names = {name for point in catalogue.of_chain(guest, chain) for name in point.disks}
    for point in _newest_first(disk, catalogue, guest, chain):
        entry = point.disks[disk.name]
        lost = _unfit(disk, catalogue, entry)
        if lost is None:
            known = written_since(disk, chain, point.sequence, point.id, names)
            if not isinstance(known, Lost):
                return entry, known.bitmaps
            lost = known
        first = first or lost
    return first or Lost("the store has no point of this disk yet")


def needed_since(disk: GuestDisk, catalogue: Catalogue, guest: str, chain: str) -> int | None:
    """The sequence of the point from which on a next backup needs the disk's segments.

    It is the newest stored one that they lead back to. If they lead to none now (a bitmap is busy,
    a file in the store is being put back), it is the newest that has the disk.

    Returns:
        None: the store has no point of the disk.
    """
    found = _newest_usable(disk, catalogue, guest, chain)
    if not isinstance(found, Lost):
        return found[0].header.point.sequence
    stored = _newest_first(disk, catalogue, guest, chain)
    return stored[0].sequence if stored else None


def _unfit(disk: GuestDisk, catalogue: Catalogue, entry: Entry) -> Lost | None:
    """Why a stored delta cannot be a parent now, whatever QEMU knows."""
    if entry.header.size != disk.size:
        return Lost(f"the disk's size changed from {entry.header.size} to {disk.size} bytes")
    return _broken(catalogue, entry)


def _broken(catalogue: Catalogue, entry: Entry) -> Lost | None:
    try:
        catalogue.check_line(entry)
    except StoreError as error:
        return Lost(f"its chain in the store is broken: {error}")
    return None


def _differential(
    disk: GuestDisk, catalogue: Catalogue, newest: Entry, bitmaps: tuple[str, ...]
) -> Decision:
    """Build on the line's full: what changed is what its deltas hold and the bitmaps name.

    So the bitmaps since the full need not be kept in QEMU.
    """
    line = catalogue.line(newest)
    full = line[-1]
    more = Extents.empty()
    for entry in line[:-1]:
        with catalogue.open(entry) as delta:
            more = more.union(delta.extents())
    reason = f"changed since the full of point {full.header.point.id}"
    return Decision(disk, Mode.DIFFERENTIAL, reason, full, bitmaps, more.clip(0, disk.size))
