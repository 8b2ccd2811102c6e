"""Find a point that a dead run left in the store and in the source, both whole: go on with it.

No more is needed for it than the headers of the partial files, the store's points, and what the
source holds under the point's names. Any doubt, and the point is given up for a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleece.delta.header import Header
from fleece.engine.backup.decide import Decision, ModeWish, decide
from fleece.engine.backup.identity import Bond
from fleece.engine.backup.transport import TransportWish
from fleece.errors import FleeceError, PointError
from fleece.source.qemu.hold import Fleecing
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.point import QemuPoint
from fleece.source.qemu.source import QemuSource, Wanted
from fleece.store.catalogue import Catalogue
from fleece.store.partial_point import UnfinishedPoint


@dataclass(frozen=True)
class Begun:
    """A point to go on with.

    Attributes:
        left: what the store has of it.
        decisions: those that the dead run made, in the order of its disks.
        living: the point in the source.
    """

    left: UnfinishedPoint
    decisions: tuple[Decision, ...]
    living: QemuPoint


@dataclass(frozen=True)
class Asked:
    """What this run is asked to back up: a point that is resumed must be that.

    Attributes:
        guest, chain: whose point.
        bond: of the chain to the guest.
        mode: what is wanted; auto takes any.
        disks: names; empty: all writable ones.
        frozen: the guest must have been frozen for the point.
        transport: how it is to come out of QEMU.
    """

    guest: str
    chain: str
    bond: Bond
    mode: ModeWish
    disks: tuple[str, ...]
    frozen: bool = False
    transport: TransportWish = TransportWish.AUTO


def find_begun(
    candidates: Sequence[UnfinishedPoint],
    source: QemuSource,
    catalogue: Catalogue,
    asked: Asked,
    stack: contextlib.ExitStack,
    doubt: Callable[[UnfinishedPoint, str], None],
) -> Begun | None:
    """The first of some half-written points that can be gone on with.

    Args:
        candidates: what the store has.
        source: where their points may still live.
        catalogue: of the store.
        asked: what this run is asked for.
        stack: its end takes the living point down.
        doubt: told of each candidate that was given up, and why.
    """
    for left in candidates:
        try:
            _check_way(source, asked)
            decisions = _decisions(left, source, catalogue, asked)
            wanted = [Wanted(made.disk, made.bitmaps) for made in decisions]
            point = source.adopt(asked.chain, left.ref.sequence, left.ref.id, wanted)
            return Begun(left, decisions, stack.enter_context(point))
        except FleeceError as error:
            doubt(left, str(error))
    return None


def _check_way(source: QemuSource, asked: Asked) -> None:
    """Raise `PointError` if no point that is gone on with can be what is asked for.

    All of them are held by jobs and pulled, and nothing tells how a dead run's freeze went.
    """
    if asked.frozen:
        raise PointError("whether the guest was frozen for it is not known, and that is required")
    if asked.transport is TransportWish.PUSH:
        raise PointError("push is asked for, and what is pushed is always taken anew")
    if source.fleecing is not Fleecing.CLASSIC:
        raise PointError("filters are asked for, and what is held by filters is always taken anew")


def _decisions(
    left: UnfinishedPoint, source: QemuSource, catalogue: Catalogue, asked: Asked
) -> tuple[Decision, ...]:
    """The dead run's decisions, made again: they must come out the same.

    Raises:
        FleeceError: they do not, or the point is not what is asked for.
    """
    if left.chain != asked.chain:
        raise PointError("it is of another chain")
    if any(head.identity != asked.bond.identity for head in left.heads):
        raise PointError("it is of another guest")
    stored = [point.sequence for point in catalogue.points if point.guest == asked.guest]
    if left.ref.sequence <= max([0, *stored]):
        raise PointError("the store has a later point")
    disks = {disk.name: disk for disk in source.inventory().choose(asked.disks)}
    if sorted(disks) != sorted(head.disk for head in left.heads):
        raise PointError("it is of other disks than are asked for")
    return tuple(_decided(head, disks[head.disk], catalogue, asked) for head in left.heads)


def _decided(head: Header, disk: GuestDisk, catalogue: Catalogue, asked: Asked) -> Decision:
    wish = ModeWish(head.mode.value)
    if asked.mode not in (ModeWish.AUTO, wish):
        raise PointError(f"it is {head.mode}, and {asked.mode} is asked for")
    if head.size != disk.size:
        raise PointError(f"disk {disk.name} has another size now")
    made = decide(disk, wish, catalogue, asked.guest, asked.chain, asked.bond.adopted)
    parent = None if made.parent is None else made.parent.as_parent()
    if made.mode is not head.mode or parent != head.parent:
        raise PointError(f"disk {disk.name} would build on something else now")
    return made
