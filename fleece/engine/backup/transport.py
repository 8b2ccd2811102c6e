"""Whether a point is pulled or pushed."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from fleece.errors import UsageError
from fleece.source.base import Transport
from fleece.source.qemu.hold import Fleecing
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.source import QemuSource


class TransportWish(enum.StrEnum):
    """What is wanted; auto pulls where that is safe, and else has QEMU push."""

    AUTO = "auto"
    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True)
class Chosen:
    """How a point comes out of QEMU.

    Attributes:
        transport: for all disks of the point, because they are of one transaction.
        reason: why it is pushed.
    """

    transport: Transport
    reason: str | None = None


def choose(source: QemuSource, wish: TransportWish, disks: Sequence[GuestDisk]) -> Chosen:
    """Decide. A wish to pull what must not be pulled is refused when the point is taken.

    Raises:
        UsageError: it must be pushed, and the point be held by filters.
    """
    obstacles = {disk.name: source.pull_obstacle(disk) for disk in disks}
    found = next(((name, why) for name, why in obstacles.items() if why is not None), None)
    if wish is TransportWish.PULL or (wish is TransportWish.AUTO and found is None):
        return Chosen(Transport.PULL)
    if source.fleecing is not Fleecing.CLASSIC:
        raise UsageError(
            "what is pushed is held by jobs, not by filters",
            hint="leave --fleecing filter out, or choose --transport pull",
        )
    if found is None:
        return Chosen(Transport.PUSH, "QEMU pushes it")
    return Chosen(Transport.PUSH, f"QEMU pushes it, because of disk {found[0]}: {found[1]}")
