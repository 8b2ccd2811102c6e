"""Fill the deltas of a point that is pushed: the source writes to a server of ours."""

from __future__ import annotations

import contextlib

from fleece.delta.chain import Chain
from fleece.engine.backup.decide import Decision
from fleece.engine.backup.filling import Filling
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.push import PushJob, push_all
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.pace import rate_now


def fill_by_push(filling: Filling) -> list[DiskResult]:
    """Have a point's disks pushed into their deltas, and finish these."""
    task, taken, push = filling.task, filling.taken, filling.taken.living.push
    assert push is not None
    with contextlib.ExitStack() as stack:
        jobs = [
            _push_job(filling, made, stack.enter_context(filling.chain(made.parent)))
            for made in taken.decisions
        ]
        push.rate = rate_now(task.options.rate)
        push_all(jobs, push, task.counter, task.cancel, task.options.workers, taken.living.watch)
        taken.living.check()
        return filling.finish(taken.decisions, jobs, {})


def _push_job(filling: Filling, made: Decision, base: Chain | None) -> PushJob:
    """The work on one disk, whose delta is begun."""
    granularity = None if made.since is None else filling.taken.living.granularity
    head = filling.head(made, made.disk.size, granularity)
    opening = filling.sinks.open(made.disk.name, made.disk.size)
    writer = filling.writer(head, opening, base)
    all_comes = base is not None and made.since is None
    held = HeldLeaves(base, head.covers_from) if base is not None and all_comes else None
    return PushJob(made.disk.name, writer, held)
