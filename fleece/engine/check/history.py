"""What a store knows of each guest's past: its points, what is said of them, what was proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece.delta.header import Mode
from fleece.engine.check.status import GuestStatus, Past, StoreStatus, past_of, status_of
from fleece.errors import StoreError
from fleece.store import notes
from fleece.store.catalogue import Catalogue, StoredPoint
from fleece.store.drills import Drill, drills_of
from fleece.store.marks import Marks, marks

_HEAVIEST = (Mode.FULL, Mode.RESCAN, Mode.DIFFERENTIAL, Mode.INCREMENTAL)


@dataclass(frozen=True)
class PointHistory:
    """One point of a guest, complete or not.

    Attributes:
        point: what the store has of it.
        marks: what is said of it.
        mode: of its disks, the one that read most.
        stored_bytes: of its deltas.
        verified: since when all its deltas have been verified: the oldest of their last
            verifications; None: one never was, or failed.
        failed: a delta of it was not sound when it was last verified.
    """

    point: StoredPoint
    marks: Marks
    mode: Mode
    stored_bytes: int
    verified: datetime | None
    failed: bool


@dataclass(frozen=True)
class GuestHistory:
    """One guest's part of a store.

    Attributes:
        status: how it is now.
        points: oldest first.
        restored_bytes: of disk, of all complete points: what they would take if each was restored.
        distrusted: disks of which an audit found that the source had missed a write, and why; the
            next backup reads all of them.
        drills: the last ones, oldest first.
    """

    status: GuestStatus
    points: tuple[PointHistory, ...]
    restored_bytes: int
    distrusted: Mapping[str, str]
    drills: tuple[Drill, ...]


@dataclass(frozen=True)
class StoreHistory:
    """What a store knows of its past.

    Attributes:
        status: how it is now.
        guests: by name.
    """

    status: StoreStatus
    guests: tuple[GuestHistory, ...]


def history(catalogue: Catalogue, now: datetime | None = None) -> StoreHistory:
    """Tell the past of a store's guests, without reading data.

    A backup that failed before its point was committed left no trace of itself in the store.

    Args:
        catalogue: of the store.
        now: by the clock, in UTC; None: look.
    """
    now = now or datetime.now(UTC)
    past = past_of(catalogue, now)
    status = status_of(catalogue, past, now)
    points: dict[str, list[PointHistory]] = {}
    for point, said in zip(catalogue.points, marks(catalogue, catalogue.points), strict=True):
        points.setdefault(point.guest, []).append(_point(point, said, past))
    guests = (_guest(catalogue, each, points[each.guest]) for each in status.guests)
    return StoreHistory(status, tuple(guests))


def _guest(
    catalogue: Catalogue, status: GuestStatus, points: Sequence[PointHistory]
) -> GuestHistory:
    restored = sum(_size(told.point) for told in points if told.point.complete)
    distrusted = _distrusted(catalogue, points[-1].point)
    drills = drills_of(catalogue.access, status.guest)
    return GuestHistory(status, tuple(points), restored, distrusted, drills)


def _point(point: StoredPoint, said: Marks, past: Past) -> PointHistory:
    entries = point.deltas.values()
    known = [past[entry.key] for entry in entries]
    sound = [last.time for last in known if last is not None and last.sound]
    modes = {entry.header.mode for entry in (point.disks or point.parts).values()}
    return PointHistory(
        point,
        said,
        next(mode for mode in _HEAVIEST if mode in modes),
        sum(entry.stored_bytes for entry in entries),
        min(sound) if sound and len(sound) == len(known) and point.complete else None,
        any(last is not None and not last.sound for last in known),
    )


def _size(point: StoredPoint) -> int:
    return sum(entry.header.size for entry in point.deltas.values())


def _distrusted(catalogue: Catalogue, newest: StoredPoint) -> dict[str, str]:
    found: dict[str, str] = {}
    for disk in newest.disks:
        try:
            reason = notes.distrusted(catalogue.access, newest.chain, disk)
        except StoreError as error:
            reason = f"the note about it cannot be read ({error})"
        if reason is not None:
            found[disk] = reason
    return found
