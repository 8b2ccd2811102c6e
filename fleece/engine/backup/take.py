"""Take a point from a source, after what interrupted runs left there is taken down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from fleece import events
from fleece.delta.header import PointRef
from fleece.delta.part import LARGEST, Part
from fleece.engine.backup.decide import Decision
from fleece.engine.backup.plan import Plan
from fleece.engine.backup.task import Task
from fleece.source.base import Point, Request, Source, TellsMachine, Wanted
from fleece.store.partial_point import UnfinishedPoint


@dataclass(frozen=True)
class Taken:
    """A living point of a backup.

    Attributes:
        ref: its name.
        decisions: one for each disk.
        living: the point in the source.
        left: what an interrupted backup has stored of it already; None: it is new.
        gone: disks of earlier points that the guest no longer has.
        parts: of the machine, as they are to be stored; what an interrupted backup has stored of
            them is not among them.
    """

    ref: PointRef
    decisions: tuple[Decision, ...]
    living: Point
    left: UnfinishedPoint | None = None
    gone: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of all parts of the machine that the point has."""
        if self.left is not None:
            return tuple(head.disk for head in self.left.parts)
        return tuple(part.name for part in self.parts)


def recover(source: Source, chain_id: str, listener: events.Listener) -> None:
    """Take down what interrupted runs left of a chain's points in the source, and tell it."""
    for removed in source.recover(chain_id):
        listener(events.Leftover(removed.kind, removed.item))
    for doubt in source.doubts:
        listener(events.Warned(doubt))


@contextlib.contextmanager
def taken(source: Source, request: Request, listener: events.Listener) -> Iterator[Point]:
    """Take a point and tell it; the context's end takes it down."""
    with source.take(request) as living:
        names = tuple(wanted.disk.name for wanted in request.wanted)
        listener(events.PointTaken(request.point, names))
        for warning in living.warnings:
            listener(events.Warned(warning))
        yield living


def take(task: Task, plan: Plan, stack: contextlib.ExitStack) -> Taken:
    """Take a planned point; the stack's end takes it down."""
    ref, chain_id = plan.ref, task.lineage.chain_id
    wanted = [Wanted(made.disk, made.since) for made in plan.decisions]
    request = Request(chain_id, ref.sequence, ref.id, wanted, transport=plan.transport)
    task.cancel.check()
    living = stack.enter_context(taken(task.source, request, task.listener))
    parts = _machine(task, living)
    return Taken(ref, plan.decisions, living, gone=plan.gone, parts=parts)


def _machine(task: Task, living: Point) -> tuple[Part, ...]:
    """What a living point tells of the machine; what it cannot is a warning, and no failure.

    A stream takes one disk's delta, and nothing beside it.
    """
    if task.output is not None or not isinstance(living, TellsMachine):
        return ()
    told = living.machine()
    missing = [*told.missing]
    missing += [f"{one.kind}: it has {len(one.data)} bytes" for one in told.parts if _huge(one)]
    for text in missing:
        task.warn(f"the point lacks a part of the machine: {text}")
    for kind in told.later:
        task.warn(
            f"a part of the machine was written while the point was taken, and may be newer than "
            f"the disks: {kind}"
        )
    return tuple(part for part in told.parts if not _huge(part))


def _huge(part: Part) -> bool:
    return len(part.data) > LARGEST
