"""A point that somebody else took: nothing of it is made, changed or removed here."""

from __future__ import annotations

from collections.abc import Sequence

from fleece.extents import Extents
from fleece.source.base import Export
from fleece.source.nbd.held import HeldPoint
from fleece.source.nbd.inventory import ServedDisk


class NbdPoint:
    """A point that lives as long as its exports are served.

    Args:
        disks: of it.
        exports: of these.
        held: proves that they are still these.
    """

    push = None
    granularity = 64 * 1024
    frozen = False
    stuck = None
    reclaims = False
    scarce = False

    def __init__(
        self, disks: Sequence[ServedDisk], exports: tuple[Export, ...], held: HeldPoint
    ) -> None:
        self.exports = exports
        self._disks = tuple(disks)
        self._held = held

    @property
    def warnings(self) -> tuple[str, ...]:
        """That a disk can be written while it is read."""
        return tuple(
            f"disk {disk.name}: its server lets clients write to it, so nothing proves that it is "
            f"of one moment; serve it read-only ({disk.place.uri})"
            for disk in self._disks
            if disk.writable
        )

    def check(self) -> None:
        """Raise `PointError` if an export is gone, was replaced, or has another size."""
        self._held.check()

    def watch(self) -> None:
        """Raise `PointError` if an export is gone."""
        self._held.watch()

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Nothing is copied for the point."""

    def close(self) -> None:
        """The exports are somebody else's."""

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """The bitmaps are somebody else's: who keeps the point's id lets go of older ones."""
        return ()
