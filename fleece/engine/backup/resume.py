"""Find the point of an interrupted backup that is whole in store and source, and resume it.

No more is needed for it than the headers of the partial files, the store's points, and what the
source holds under the point's names. Any doubt, and the point is given up for a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleece.delta.header import Header
from fleece.engine.backup.decide import Decision, Lineage, ModeWish, decide
from fleece.engine.backup.identity import Bond
from fleece.errors import FleeceError, PointError
from fleece.source.base import Disk, Point, Request, Resumable, TransportWish, Wanted
from fleece.store.partial_point import UnfinishedPoint


@dataclass(frozen=True)
class Begun:
    """A point to resume.

    Attributes:
        left: what the store has of it.
        decisions: those that the interrupted backup made, in the order of its disks.
        living: the point in the source.
    """

    left: UnfinishedPoint
    decisions: tuple[Decision, ...]
    living: Point


@dataclass(frozen=True)
class Asked:
    """What this run is asked to back up: a point that is resumed must be that.

    Attributes:
        lineage: of the chain whose point it is.
        bond: of the chain to the guest.
        mode: what is wanted; auto takes any.
        disks: names; empty: all writable ones.
        transport: how it is to come out of the source.
    """

    lineage: Lineage
    bond: Bond
    mode: ModeWish
    disks: tuple[str, ...]
    transport: TransportWish = TransportWish.AUTO


def find_begun(
    candidates: Sequence[UnfinishedPoint],
    asked: Asked,
    stack: contextlib.ExitStack,
    doubt: Callable[[UnfinishedPoint, str], None],
) -> Begun | None:
    """The first of some half-written points that can be resumed.

    Args:
        candidates: what the store has.
        asked: what this run is asked for.
        stack: its end takes the living point down.
        doubt: told of each candidate that was given up, and why.
    """
    for left in candidates:
        try:
            source = _resumable(asked)
            decisions = _decisions(left, asked)
            wanted = [Wanted(made.disk, made.since) for made in decisions]
            chain_id = asked.lineage.chain_id
            point = source.adopt(Request(chain_id, left.ref.sequence, left.ref.id, wanted))
            return Begun(left, decisions, stack.enter_context(point))
        except FleeceError as error:
            doubt(left, str(error))
    return None


def _resumable(asked: Asked) -> Resumable:
    """The source, if a point that it resumes can be what is asked for.

    Raises:
        PointError: none can.
    """
    source = asked.lineage.source
    if not isinstance(source, Resumable):
        raise PointError("this kind of source resumes none")
    if (reason := source.unresumable()) is not None:
        raise PointError(reason)
    if asked.transport is TransportWish.PUSH:
        raise PointError("a backup with push always takes a new point")
    return source


def _decisions(left: UnfinishedPoint, asked: Asked) -> tuple[Decision, ...]:
    """The interrupted backup's decisions, made again: they must come out the same.

    Raises:
        FleeceError: they do not, or the point is not what is asked for.
    """
    lineage = asked.lineage
    if left.chain != lineage.chain_id:
        raise PointError("it is of another chain")
    if any(head.identity != asked.bond.identity for head in left.heads):
        raise PointError("it is of another guest")
    points = lineage.catalogue.points
    stored = [point.sequence for point in points if point.guest == lineage.guest]
    if left.ref.sequence <= max([0, *stored]):
        raise PointError("the store has a later point")
    disks = {disk.name: disk for disk in lineage.source.inventory().choose(asked.disks)}
    if sorted(disks) != sorted(head.disk for head in left.heads):
        raise PointError("it is of other disks than are asked for")
    return tuple(_decided(head, disks[head.disk], asked) for head in left.heads)


def _decided(head: Header, disk: Disk, asked: Asked) -> Decision:
    wish = ModeWish(head.mode.value)
    if asked.mode not in (ModeWish.AUTO, wish):
        raise PointError(f"it is {head.mode}, and {asked.mode} is asked for")
    if head.size != disk.size:
        raise PointError(f"disk {disk.name} has another size now")
    made = decide(disk, wish, asked.lineage, asked.bond.adopted)
    parent = None if made.parent is None else made.parent.as_parent()
    if made.mode is not head.mode or parent != head.parent:
        raise PointError(f"disk {disk.name} would build on something else now")
    return made
