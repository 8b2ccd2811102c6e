"""Whether a point is pulled or pushed."""

from __future__ import annotations

from collections.abc import Sequence

from fleece.errors import UsageError
from fleece.source.base import Chosen, Transport, TransportWish
from fleece.source.options import Fleecing
from fleece.source.qemu.inventory import GuestDisk, pull_obstacle


def choose(
    disks: Sequence[GuestDisk],
    version: tuple[int, int, int],
    wish: TransportWish,
    fleecing: Fleecing,
) -> Chosen:
    """Decide. A wish to pull what must not be pulled is refused when the point is taken.

    Args:
        disks: of the point.
        version: QEMU's.
        wish: what is asked for.
        fleecing: how the point is to be held.

    Raises:
        UsageError: it must be pushed, and the point be held by filters.
    """
    obstacles = {disk.name: pull_obstacle(disk, version) for disk in disks}
    found = next(((name, why) for name, why in obstacles.items() if why is not None), None)
    if wish is TransportWish.PULL or (wish is TransportWish.AUTO and found is None):
        return Chosen(Transport.PULL)
    if fleecing is not Fleecing.CLASSIC:
        raise UsageError(
            "a push is held by jobs, not by filters",
            hint="leave --fleecing filter out, or choose --transport pull",
        )
    if found is None:
        return Chosen(Transport.PUSH, "QEMU pushes it")
    return Chosen(Transport.PUSH, f"QEMU pushes it, because of disk {found[0]}: {found[1]}")
