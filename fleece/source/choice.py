"""What kinds of sources choose alike: disks by their names, and how a point comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from fleece.errors import PointError, UsageError
from fleece.source.base import Chosen, Disk, Transport, TransportWish

D = TypeVar("D", bound=Disk)


def named(disks: Sequence[D], names: Sequence[str]) -> Iterator[D]:
    """The disks of these names, in their order.

    Raises:
        UsageError: a name is given twice.
        PointError: there is no disk of the next name.
    """
    if len(set(names)) != len(names):
        raise UsageError("a disk is named twice")
    known = {disk.name: disk for disk in disks}
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise PointError(f"there is no disk {name}", hint=f"the disks are: {there}")
        yield known[name]


def writable(disks: Sequence[D], names: Sequence[str], why: str) -> tuple[D, ...]:
    """The disks of these names, or all that are writable.

    Args:
        disks: all of them.
        names: of those to choose; empty: all writable ones.
        why: a read-only one cannot be chosen.

    Raises:
        UsageError: a name is given twice.
        PointError: there is no such disk, or it is read-only, or there is none at all.
    """
    chosen = []
    for disk in named(disks, names):
        if disk.read_only:
            raise PointError(f"disk {disk.name} is read-only: {why}", hint="leave it out")
        chosen.append(disk)
    found = tuple(chosen) or tuple(disk for disk in disks if not disk.read_only)
    if not found:
        raise PointError("the guest has no writable disk")
    return found


def of_kind(disk: Disk, kind: type[D]) -> D:
    """A disk that was handed back to the source that told it, as what it is there.

    Raises:
        UsageError: it is another source's.
    """
    if not isinstance(disk, kind):
        raise UsageError(f"disk {disk.name} is not of this source")
    return disk


def only_pulled(wish: TransportWish, why: str, where: str) -> Chosen:
    """How a point comes out of a source that cannot push.

    Args:
        wish: what is asked for.
        why: it cannot, for the message.
        where: the source.

    Raises:
        UsageError: it is to be pushed.
    """
    if wish is TransportWish.PUSH:
        raise UsageError(why, where=where, hint="leave --transport push out")
    return Chosen(Transport.PULL)
