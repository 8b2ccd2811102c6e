"""The ways to hold a point: how the guest's disks are kept readable as they were."""

from __future__ import annotations

from typing import Protocol

from fleece.errors import PointError


class Entangled(PointError):
    """Something else came between the preparations and the point. Prepared anew, it may work."""


class Fleecing(Protocol):
    """One way to hold a point. What it makes in QEMU, `runtime.take_down` removes by name."""

    def prepare(self) -> None:
        """Add to QEMU what the point is held by. The guest's disks stay as they are."""

    def take(self, limit: float) -> None:
        """Take the point: all disks at one moment, with their segments.

        Args:
            limit: seconds that it may take.

        Raises:
            Entangled: not now; nothing is taken.
            PointError: QEMU refused.
        """

    def export(self, number: int) -> dict[str, object]:
        """What a disk's export shows, as arguments of `block-export-add`."""

    def look(self, *, crossed: bool) -> None:
        """Look after what the point is held by; called a few times a second.

        Args:
            crossed: QEMU told since the last look that a write threshold was crossed.
        """

    def check(self) -> None:
        """Raise `PointError` unless all that was read until now was read of the point."""
