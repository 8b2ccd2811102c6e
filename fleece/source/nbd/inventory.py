"""The disks of a source of exports."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.source.choice import named
from fleece.source.nbd.text import Place


@dataclass(frozen=True)
class ServedDisk:
    """A disk that somebody serves.

    Attributes:
        place: its name and its export.
        size: in bytes.
        writable: its server lets clients write to it.
        lacks: that it lacks a bitmap that was named, in a clause; None: it has them.
    """

    place: Place
    size: int
    writable: bool
    lacks: str | None

    @property
    def name(self) -> str:
        """Its own."""
        return self.place.name

    @property
    def read_only(self) -> bool:
        """No: what an export takes is not what a guest may write."""
        return False


@dataclass(frozen=True)
class NbdInventory:
    """The disks, in the order in which they were named."""

    disks: tuple[ServedDisk, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[ServedDisk, ...]:
        """The disks of these names, or all.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk.
        """
        return tuple(named(self.disks, names)) or self.disks
