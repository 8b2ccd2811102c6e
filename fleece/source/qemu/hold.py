"""The ways to hold a point: how the guest's disks are kept readable as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fleece.errors import PointError
from fleece.extents import Extents
from fleece.source.base import Export

NO_FLUSH = {"no-flush": True}
"""How QEMU treats the scratch's files (`BlockdevCacheOptions`): no flush reaches their disk. They
are gone with the point, so nobody needs them durable; and QEMU would flush when a qcow2 one grows,
in the guest's way, and when it is closed, with all that QEMU does waiting for it."""


class Entangled(PointError):
    """Something else came between the preparations and the point. Prepared anew, it may work."""


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
