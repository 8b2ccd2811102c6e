"""What the engine asks of a source: disks, a point of all of them, exports to read it by."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fleece.extents import Extents


class Transport(enum.StrEnum):
    """How the bytes of a point come out of QEMU.

    `PULL`: the engine reads exports of QEMU's NBD server. `PUSH`: QEMU writes to an NBD server of
    the engine's.
    """

    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True)
class Export:
    """One disk of a point, ready to be read.

    Attributes:
        disk: its name.
        uri: NBD URI.
        size: in bytes.
        dirty_context: the meta context whose dirty ranges are what changed; None: read it all.
        granularity: of that bitmap, in bytes.
        unit: no request to read may cross a multiple of so many bytes, and no zero status be
            believed: the server would show what the disk holds now. None: any request is right.
    """

    disk: str
    uri: str
    size: int
    dirty_context: str | None
    granularity: int | None
    unit: int | None = None


class Point(Protocol):
    """A point in time that lives until its context ends."""

    @property
    def exports(self) -> Sequence[Export]:
        """One for each disk asked for."""

    def check(self) -> None:
        """Raise `PointError` if the exports do not show the point in time any more."""

    def watch(self) -> None:
        """Raise `PointError` if the backup must be given up for the guest's sake. Cheap."""

    @property
    def reclaims(self) -> bool:
        """`reclaim` does something."""

    @property
    def scarce(self) -> bool:
        """There is so little room that much should be reclaimed soon."""

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Ranges of a disk, in bytes, are durable elsewhere or not needed: nobody reads them again.

        From any thread.
        """

    def close(self) -> None:
        """Take the exports down; the point is gone. Safe to repeat."""

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """The deltas are durable: forget what only older points needed.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            What could not be forgotten yet, a line each.
        """
