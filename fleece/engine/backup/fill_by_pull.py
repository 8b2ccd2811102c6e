"""Fill the deltas of a point that is pulled: each of its exports is opened and read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from fleece import events
from fleece.delta.chain import Chain
from fleece.delta.header import Mode
from fleece.disk.nbd import NbdDisk
from fleece.engine.backup.audit import distrust
from fleece.engine.backup.decide import Decision, ModeWish, impossible
from fleece.engine.backup.filling import Filling, Opening
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.pull import CopyJob, copy_all, open_dirty
from fleece.engine.backup.reclaim import Reclaim, never_read
from fleece.engine.backup.sample import AuditJob, compare_clean, refuse_differing
from fleece.engine.backup.shrunk import cut_at
from fleece.engine.backup.task import Task
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.errors import PointError
from fleece.extents import Extents
from fleece.pace import Pace
from fleece.source.base import Export, Point
from fleece.source.lost import reads_of


@dataclass(frozen=True)
class _Opened:
    """One disk of the point, open.

    Attributes:
        made: how it is read.
        disk: its bytes.
        dirty: the whole leaves that its delta must hold, or (a rescan) that are compared.
        granularity: of the bitmaps that say so, in bytes; None: none does.
        base: the chain that the delta builds on; None: a full.
    """

    made: Decision
    disk: NbdDisk
    dirty: Extents
    granularity: int | None
    base: Chain | None


@dataclass(frozen=True)
class _Work:
    """The work on one disk.

    Attributes:
        made: how it is read.
        copy: what its delta must hold.
        audit: what is compared with the chain besides; None: nothing.
    """

    made: Decision
    copy: CopyJob
    audit: AuditJob | None


def fill_by_pull(filling: Filling) -> list[DiskResult]:
    """Read a point's disks into their deltas, and finish these."""
    task, taken, living = filling.task, filling.taken, filling.taken.living
    pace = None if task.options.rate is None else Pace(task.options.rate, task.cancel)
    with contextlib.ExitStack() as stack:
        # All are open before the first delta is begun: a point with some of its deltas alone
        # could not be resumed.
        pairs = list(zip(taken.decisions, living.exports, strict=True))
        opened = [_opened(filling, made, export, pace, stack) for made, export in pairs]
        works = [
            _work(filling, disk, export)
            for disk, export in zip(opened, living.exports, strict=True)
        ]
        jobs = [work.copy for work in works]
        audits = [work.audit for work in works if work.audit is not None]
        kept = sum(job.kept.total for job in jobs)
        if taken.left is not None:
            names = tuple(made.disk.name for made in taken.decisions)
            task.listener(events.Resumed(taken.ref.id, taken.ref.time, names, kept))
        counter = task.counter(kept + sum(job.dirty.total for job in jobs))
        counter.count(kept, kept)
        with reads_of(living):
            copy_all(jobs, counter, task.cancel, task.options.workers, living.watch)
            _audit(task, audits, living)
        living.check()
        refuse_differing(audits)
        audited = {job.name: job.compared_bytes for job in audits}
        return filling.finish([work.made for work in works], jobs, audited)


def _opened(
    filling: Filling,
    made: Decision,
    export: Export,
    pace: Pace | None,
    stack: contextlib.ExitStack,
) -> _Opened:
    """A disk of the point, open; one that was cut since its parent is to be rescanned."""
    base = stack.enter_context(filling.chain(made.parent))
    with reads_of(filling.taken.living):
        disk, dirty = open_dirty(export, made.more_dirty, pace, filling.task.cancel)
    opened = _Opened(made, disk, dirty, export.granularity, base)
    whole = filling.taken.left is None and not export.partial
    if not whole or base is None or made.mode is Mode.RESCAN:
        return opened
    with reads_of(filling.taken.living):
        place = cut_at(base, disk, dirty)
    if place is None:
        return opened
    return _rescanned(filling.task, opened, place)


def _rescanned(task: Task, opened: _Opened, place: int) -> _Opened:
    """The same disk, of which no bitmap is believed: it was shrunk and grown back.

    Raises:
        PointError: something else than that is asked for.
    """
    name = opened.made.disk.name
    reason = (
        "the disk was shrunk and grown back, or written behind the source's back: byte "
        f"{place} is called unchanged, but is not what the chain holds"
    )
    if task.options.mode is not ModeWish.AUTO:
        raise impossible(name, task.options.mode, reason)
    task.listener(events.DiskPlanned(name, Mode.RESCAN, reason))
    made = dataclasses.replace(
        opened.made, mode=Mode.RESCAN, reason=reason, since=None, more_dirty=None
    )
    whole = Extents.whole(opened.disk.size)
    return dataclasses.replace(opened, made=made, dirty=whole, granularity=None)


def _work(filling: Filling, opened: _Opened, export: Export) -> _Work:
    """The work on one disk, whose delta is begun; the point may let go of what nobody reads."""
    made, options, living = opened.made, filling.task.options, filling.taken.living
    job = _copy_job(filling, opened, export)
    if living.reclaims and not options.audit:
        living.reclaim(export.disk, never_read(job.dirty, export.size))
    if not options.audit or opened.base is None or made.mode is Mode.RESCAN:
        return _Work(made, job, None)
    clean = Extents.whole(export.size).subtract(job.dirty.union(job.kept))
    return _Work(made, job, AuditJob(export.disk, job.disk, clean, opened.base))


def _copy_job(filling: Filling, opened: _Opened, export: Export) -> CopyJob:
    """What is to be copied, less what an interrupted backup is proven to have copied."""
    opening, base = filling.sinks.open(export.disk, opened.dirty.total), opened.base
    if opening.proven is None:
        head = filling.head(opened.made, export.size, opened.granularity)
    else:
        head = opening.proven.head
    done = _done(opened, opening)
    writer = filling.writer(head, opening, base)
    rescan = opened.made.mode is Mode.RESCAN
    held = HeldLeaves(base, head.covers_from) if base is not None and rescan else None
    dirty = opened.dirty.subtract(done)
    job = CopyJob(opened.disk, dirty, writer, held, done)
    if filling.taken.living.reclaims and opening.sync is not None:
        job.stored = Reclaim(filling.taken.living, export.disk, opening.sync).stored
    return job


def _done(opened: _Opened, opening: Opening) -> Extents:
    """What an interrupted backup has copied.

    Raises:
        PointError: it is not part of the work.
    """
    done = Extents.empty() if opening.proven is None else opening.proven.extents()
    if len(done.subtract(opened.dirty)):
        raise PointError(
            "an interrupted backup stored parts that did not change",
            where=opened.made.disk.name,
            hint="run the backup again",
        )
    return done


def _audit(task: Task, audits: Sequence[AuditJob], living: Point) -> None:
    """Compare a sample of what is clean with the chain; note at once what is not so."""
    fraction = task.options.audit
    if not audits:
        return
    total = sum(round(job.clean.total * fraction) for job in audits)
    counter = task.counter(total, events.Phase.AUDIT)
    try:
        compare_clean(audits, fraction, counter, task.cancel, task.options.workers, living.watch)
    finally:
        distrust(task.store, task.lineage.chain_id, audits)
