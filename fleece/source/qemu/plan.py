"""What a point is planned to be, and the bitmap actions that every way of holding one needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import DELTA_BITMAP, PointNames
from fleece.source.scratch import Scratch
from fleece.source.segments import Segment
from fleece.source.workfolder import WorkFolder

GRANULARITY = 64 * 1024
"""Bytes of disk per bit of a segment: the leaf size, and QEMU's smallest unit of fleecing."""

Action = dict[str, object]
"""One action of QMP's `transaction`."""


@dataclass(frozen=True)
class PlannedDisk:
    """A disk of a point.

    Attributes:
        disk: as the inventory shows it.
        segment: the new one, which records from the point on; None: the segments stay as they are.
        merged: the bitmaps whose union is what changed on it; None: read it all.
    """

    disk: GuestDisk
    segment: Segment | None
    merged: tuple[str, ...] | None

    @property
    def written(self) -> int | None:
        """What its merged bitmaps count, in bytes of disk; None: it is read as a whole."""
        if self.merged is None:
            return None
        return sum(bitmap.count for bitmap in self.disk.bitmaps if bitmap.name in self.merged)

    def begin_segment(self) -> Iterator[Action]:
        """Have its new segment record."""
        if self.segment is not None:
            yield action(
                "block-dirty-bitmap-add",
                node=self.disk.node,
                name=self.segment.bitmap,
                persistent=self.disk.persistent_bitmaps,
                granularity=GRANULARITY,
            )

    def add_delta(self, node: str) -> Iterator[Action]:
        """Make the bitmap of what changed, on a node that goes when the point does."""
        if self.merged is not None:
            yield action(
                "block-dirty-bitmap-add",
                node=node,
                name=DELTA_BITMAP,
                disabled=True,
                granularity=GRANULARITY,
            )

    def gather_delta(self, node: str) -> Iterator[Action]:
        """Gather into it what changed until now."""
        if self.merged is not None:
            merged = [{"node": self.disk.node, "name": name} for name in self.merged]
            yield action("block-dirty-bitmap-merge", node=node, target=DELTA_BITMAP, bitmaps=merged)


@dataclass(frozen=True)
class PointPlan:
    """A point, before it is taken.

    Attributes:
        monitor: of the QEMU.
        names: of the point's things in it.
        disks: all of them, in the order of their numbers.
        work: the work folder.
        scratch: the scratch files in it.
    """

    monitor: Monitor
    names: PointNames
    disks: tuple[PlannedDisk, ...]
    work: WorkFolder
    scratch: Scratch

    def end_segments(self, planned: PlannedDisk) -> Iterator[Action]:
        """Have a disk's older segments record no more."""
        if planned.segment is None:
            return
        for bitmap in planned.disk.segments(self.names.chain_id).values():
            if bitmap.recording and not bitmap.busy:
                yield action("block-dirty-bitmap-disable", node=planned.disk.node, name=bitmap.name)


def action(kind: str, **data: object) -> Action:
    """An action of a transaction."""
    return {"type": kind, "data": data}
