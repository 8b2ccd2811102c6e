"""The ways to hold a point: how the guest's disks are kept readable as they were."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from fleece.errors import PointError, SourceError
from fleece.extents import Extents
from fleece.source.base import Export
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.plan import PointPlan

_CONFLICT = "Permission conflict"
"""Another job began on a disk after its scratch was added, and came between the two.

QEMU has put that job's filter above the disk for all who use it, our scratch too; a filter of
ours would then lie below and above it. It refuses that. A scratch that is added again lies right.
"""

NO_FLUSH = {"no-flush": True}
"""How QEMU treats the scratch's files (`BlockdevCacheOptions`): no flush reaches their disk. They
are gone with the point, so nobody needs them durable; and QEMU would flush when a qcow2 one grows,
in the guest's way, and when it is closed, with all that QEMU does waiting for it."""


class Entangled(PointError):
    """Something else came between the preparations and the point. Prepared again, it may work."""


class FleecingWay(Protocol):
    """One way to hold a point. What it makes in QEMU, `runtime.take_down` removes by name.

    Attributes:
        reclaims: `reclaim` does something.
        unit: of the exports (`Export.unit`).
    """

    reclaims: bool
    unit: int | None

    def prepare(self) -> None:
        """Add to QEMU what the point is held by. The guest's disks stay as they are.

        Raises:
            PointError: this QEMU cannot hold these disks so.
        """

    def take(self, limit: float) -> None:
        """Take the point: all disks at one moment, with their segments.

        Args:
            limit: seconds that a command may take.

        Raises:
            Entangled: not now; what is there of it can be taken down by name.
            PointError: QEMU refused.
        """

    def export(self, number: int) -> dict[str, object]:
        """What a disk's export shows, as arguments of `block-export-add`."""

    def served(self, exports: Sequence[Export]) -> None:
        """The exports are there, in the order of the disks."""

    def look(self, *, crossed: bool) -> None:
        """Look after what the point is held by; called a few times a second.

        Args:
            crossed: QEMU told since the last look that a write threshold was crossed.

        Raises:
            PointError: it is lost.
        """

    def check(self) -> None:
        """Raise `PointError` unless all that was read until now was read of the point."""

    def reclaim(self, number: int, ranges: Extents) -> None:
        """Give back what the scratch holds of a disk's ranges, which nobody reads again."""


@contextlib.contextmanager
def refusals(monitor: Monitor, conflict: type[PointError]) -> Iterator[None]:
    """Turn what QEMU refuses into a `PointError`, of this kind if something is in the way."""
    try:
        yield
    except CommandError as error:
        family = conflict if _CONFLICT in error.reason else PointError
        raise family(
            f"QEMU refused the point: {error.reason}", where=monitor.path, hint=error.hint
        ) from error


def new_scratch(plan: PointPlan, name: str, fill: Callable[[int], None]) -> Path:
    """Make a scratch file for QEMU; gives its path.

    Args:
        plan: of the point.
        name: of the file.
        fill: makes of the empty file, by its descriptor, what is wanted.

    Raises:
        SourceError: it cannot be made.
    """
    path = plan.work.path / name
    try:
        descriptor = plan.work.new_scratch_file(name)
        try:
            fill(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(
            f"the scratch cannot be made: {error.strerror}",
            where=path,
            hint="choose another folder with --scratch",
        ) from error
    plan.work.give(name, plan.monitor.peer.owner)
    return path
