"""Plan a new point: its disks, how each is read, its number; and see that it can be taken."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece import events
from fleece.delta.header import Mode, PointRef
from fleece.engine.backup.decide import Decision, decide
from fleece.engine.backup.task import Task
from fleece.engine.work.needs import check_backup_needs, room_in
from fleece.errors import UsageError
from fleece.source.base import Disk, HeldElsewhere, Resumable, Transport


@dataclass(frozen=True)
class Plan:
    """A point that is to be taken.

    Attributes:
        ref: its name.
        decisions: one for each disk.
        transport: how it comes out of the source.
        gone: disks of earlier points that the guest no longer has.
    """

    ref: PointRef
    decisions: tuple[Decision, ...]
    transport: Transport
    gone: tuple[str, ...]


def check_needs(task: Task) -> None:
    """See that all is there that the point will need, before anything is changed.

    Raises:
        FleeceError: something is missing.
    """
    disks = task.source.inventory().choose(task.options.disks)
    chosen = task.source.transport(task.options.transport, disks)
    _refuse_idle(task)
    check_backup_needs(chosen.transport, task.cancel)
    task.source.check_needs()
    if task.output is None:
        room_in(task.store.backend)


def _refuse_idle(task: Task) -> None:
    """Refuse what has no effect on points that others hold, or that end with their run.

    Raises:
        UsageError: it is asked for.
    """
    source = task.source
    if not (task.options.resume or isinstance(source, Resumable)):
        raise UsageError(
            "no point of this kind of source is ever resumed",
            where=source.where,
            hint="leave --no-resume out",
        )
    if isinstance(source, HeldElsewhere) and task.options.audit and not source.tracked:
        raise UsageError(
            "an audit reads what is said to be unchanged, and no bitmap says it of this source",
            where=source.where,
            hint="leave --audit out, or name a bitmap",
        )


def plan_point(task: Task) -> Plan:
    """Choose disks, decide for each, tell the listener; nothing is changed.

    Raises:
        FleeceError: what was asked for is impossible.
    """
    inventory = task.source.inventory()
    disks = inventory.choose(task.options.disks)
    if task.output is not None and len(disks) != 1:
        raise UsageError(
            f"a stream takes one disk, and these are {len(disks)}: "
            f"{', '.join(disk.name for disk in disks)}",
            hint="choose one with --disk",
        )
    decisions = tuple(_decided(task, disk) for disk in disks)
    chosen = task.source.transport(task.options.transport, disks)
    if chosen.transport is Transport.PUSH or chosen.partial:
        decisions = _partial(task, decisions, chosen.reason)
    task.tell_plan(decisions)
    if task.output is None:
        _warn_of_room(task, decisions)
    gone = _gone(task, {disk.name for disk in inventory.disks})
    return Plan(_new_ref(task, disks), decisions, chosen.transport, gone)


def _decided(task: Task, disk: Disk) -> Decision:
    lineage = task.lineage
    distrust = task.bond.adopted or task.store.distrusted(lineage.chain_id, disk.name)
    return decide(disk, task.options.mode, lineage, distrust)


def _partial(task: Task, decisions: Sequence[Decision], reason: str | None) -> tuple[Decision, ...]:
    """What is to be done if only what changed comes out of the source, as if it pushes.

    It tells only what changed since the newest point. For a differential all comes out; of what is
    pushed, the store leaves out what the full holds already.
    """
    if task.options.audit:
        raise UsageError(
            "an audit reads what did not change, but this source gives only what did",
            hint="leave --audit out, or choose --transport pull where that is possible",
        )
    return tuple(
        dataclasses.replace(
            made,
            reason=made.reason if reason is None else f"{made.reason}; {reason}",
            since=None if made.mode is Mode.DIFFERENTIAL else made.since,
            more_dirty=None,
        )
        for made in decisions
    )


def _warn_of_room(task: Task, decisions: Sequence[Decision]) -> None:
    """Warn if the store may not take all that has changed. Of a whole disk nobody can tell."""
    changed = sum(made.since.changed for made in decisions if made.since is not None)
    left = room_in(task.store.backend)
    if left is not None and left < changed:
        task.warn(
            f"{task.store.where}: the store may run out of room: {left} bytes are left, "
            f"and {changed} bytes have changed"
        )


def _gone(task: Task, present: Collection[str]) -> tuple[str, ...]:
    """Disks of the chain that the guest no longer has, and of which no point says so yet."""
    newest: dict[str, str] = {}
    lineage = task.lineage
    for point in lineage.catalogue.of_chain(lineage.guest, lineage.chain_id):
        newest |= dict.fromkeys(point.disks, point.id)
        for entry in point.disks.values():
            for name in entry.header.gone:
                newest.pop(name, None)
    gone = {name: point for name, point in sorted(newest.items()) if name not in present}
    for name, point_id in gone.items():
        task.listener(events.DiskGone(name, point_id))
    return tuple(gone)


def _new_ref(task: Task, disks: Sequence[Disk]) -> PointRef:
    lineage = task.lineage
    stored = [p.sequence for p in lineage.catalogue.points if p.guest == lineage.guest]
    in_source = task.source.highest_sequence(lineage.chain_id, disks)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return PointRef(secrets.token_hex(5), max([in_source, *stored]) + 1, now)
