"""Find the point of an interrupted backup that is whole in store and source, and resume it.

All that is needed for it are the headers of the partial files, the store's points, and what the
source holds under the point's names. Any doubt, and the point is given up for a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fleece import events
from fleece.delta.header import Header
from fleece.engine.backup.decide import Decision, ModeWish, decide
from fleece.engine.backup.parts import prove_parts
from fleece.engine.backup.take import Taken, recover
from fleece.engine.backup.task import Task
from fleece.errors import FleeceError, PointError, StoreError
from fleece.source.base import Disk, Request, Resumable, TransportWish, Wanted
from fleece.store.partial_point import UnfinishedPoint


def resume(task: Task, stack: contextlib.ExitStack) -> Taken | None:
    """Resume the point of an interrupted backup, if there is one, and clean up all others.

    Args:
        task: what is asked for.
        stack: its end takes the point down.
    """
    found = _find(task, stack)
    left = None if found is None else found.left
    try:
        for path in task.store.remove_partial(task.lineage.guest, left):
            task.listener(events.Leftover("partial point", path))
    except StoreError as error:  # the key may write there, and not delete
        task.warn(f"what an interrupted backup left in the store cannot be removed: {error}")
    recover(task.source, task.lineage.chain_id, task.listener)
    if found is not None:
        task.tell_plan(found.decisions, f"resumes point {found.ref.id} of an interrupted backup")
        for warning in found.living.warnings:
            task.warn(warning)
    return found


def _find(task: Task, stack: contextlib.ExitStack) -> Taken | None:
    """The first of the half-written points that can be resumed."""
    for left in _candidates(task):
        try:
            source = _resumable(task)
            prove_parts(task, left)
            decisions = _decisions(left, task)
            wanted = [Wanted(made.disk, made.since) for made in decisions]
            chain_id = task.lineage.chain_id
            point = source.adopt(Request(chain_id, left.ref.sequence, left.ref.id, wanted))
            return Taken(left.ref, decisions, stack.enter_context(point), left)
        except FleeceError as error:
            task.warn(f"point {left.ref.id} of an interrupted backup cannot be resumed: {error}")
    return None


def _candidates(task: Task) -> Sequence[UnfinishedPoint]:
    """Points that may be resumed: none with a disk that failed an audit."""
    if not task.options.resume or task.output is not None:
        return ()
    store = task.store
    return [
        left
        for left in store.unfinished(task.lineage.guest)
        if all(store.distrusted(left.chain, head.disk) is None for head in left.heads)
    ]


def _resumable(task: Task) -> Resumable:
    """The source, if a point that it resumes can be what is asked for.

    Raises:
        PointError: none can.
    """
    source = task.lineage.source
    if not isinstance(source, Resumable):
        raise PointError("this kind of source resumes none")
    if (reason := source.unresumable()) is not None:
        raise PointError(reason)
    if task.options.transport is TransportWish.PUSH:
        raise PointError("a backup with push always takes a new point")
    return source


def _decisions(left: UnfinishedPoint, task: Task) -> tuple[Decision, ...]:
    """The interrupted backup's decisions, made again: they must come out the same.

    Raises:
        FleeceError: they do not, or the point is not what is asked for.
    """
    lineage = task.lineage
    if left.chain != lineage.chain_id:
        raise PointError("it is of another chain")
    if any(head.identity != task.bond.identity for head in left.heads):
        raise PointError("it is of another guest")
    if any(head.tags != task.options.tags for head in left.heads):
        raise PointError("it has other tags than are asked for")
    points = lineage.catalogue.points
    stored = [point.sequence for point in points if point.guest == lineage.guest]
    if left.ref.sequence <= max([0, *stored]):
        raise PointError("the store has a later point")
    disks = {disk.name: disk for disk in lineage.source.inventory().choose(task.options.disks)}
    if sorted(disks) != sorted(head.disk for head in left.heads):
        raise PointError("it is of other disks than are asked for")
    return tuple(_decided(head, disks[head.disk], task) for head in left.heads)


def _decided(head: Header, disk: Disk, task: Task) -> Decision:
    wish = ModeWish(head.mode.value)
    if task.options.mode not in (ModeWish.AUTO, wish):
        raise PointError(f"it is {head.mode}, and {task.options.mode} is asked for")
    if head.size != disk.size:
        raise PointError(f"disk {disk.name} has another size now")
    made = decide(disk, wish, task.lineage, task.bond.adopted)
    parent = None if made.parent is None else made.parent.as_parent()
    if made.mode is not head.mode or parent != head.parent:
        raise PointError(f"disk {disk.name} would build on something else now")
    return made
