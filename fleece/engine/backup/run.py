"""One backup: decide, take the point, copy, commit, and only then let go of what is not needed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.sink import Sink
from fleece.engine.backup.aftermath import Aftermath, let_go, oldest_needed, trust
from fleece.engine.backup.decide import Lineage
from fleece.engine.backup.destination import store_point, stream_point
from fleece.engine.backup.fill_by_pull import fill_by_pull
from fleece.engine.backup.fill_by_push import fill_by_push
from fleece.engine.backup.identity import bound, guest_name
from fleece.engine.backup.options import BackupOptions, BackupResult, DiskResult, common_mode
from fleece.engine.backup.plan import check_needs, plan_point
from fleece.engine.backup.resume import resume
from fleece.engine.backup.take import Taken, take
from fleece.engine.backup.task import Task
from fleece.errors import SourceError
from fleece.source.base import Source, Transport
from fleece.store.store import Store


def backup(
    source: Source,
    store: Store,
    options: BackupOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    output: Sink | None = None,
) -> BackupResult:
    """Back a guest's disks up into a store, as one point.

    If an interrupted backup into this store left its point alive, the backup resumes that point.

    When this returns, the point is durable and its segments are rotated. When it raises, the chain
    is as it was, and nothing of the attempt is left but segments that the next point needs.

    Args:
        source: the guest.
        store: where its points are.
        options: how.
        listener: hears what happens.
        cancel: stops it.
        output: takes the one disk's delta instead of the store, which it builds on all the same.
            The caller makes it durable. The next backup builds on this point only if the store
            has it by then (`import_delta`).

    Raises:
        FleeceError: of the family that says what failed.
    """
    options = options or BackupOptions()
    options.check()
    guest = guest_name(source, options.guest)
    source.check_ready()
    with store.locked(guest):
        for removed in source.release():
            listener(events.Leftover(removed.kind, removed.item))
        catalogue = store.catalogue(guest)
        for file in catalogue.damaged:
            listener(events.Warned(str(file.error)))
        chain_id = store.chain_of(guest, catalogue)
        bond = bound(source, catalogue, guest, chain_id, adopt=options.adopt)
        lineage = Lineage(source, catalogue, guest, chain_id)
        token = cancel or CancelToken()
        return _back_up(Task(store, lineage, bond, options, listener, token, output))


def _back_up(task: Task) -> BackupResult:
    """All steps of a backup whose chain is known and whose guest is locked, in their order."""
    after = Aftermath(task.listener)
    check_needs(task)
    with after.rest(), contextlib.ExitStack() as stack:
        taken = resume(task, stack) or take(task, plan_point(task), stack)
        fill = fill_by_pull if taken.living.push is None else fill_by_push
        oldest = None
        if task.output is None:
            results = store_point(task, taken, fill)
        else:
            results = stream_point(task, taken, fill, task.output)
            oldest = oldest_needed(task, taken)
        after.stored = True
        told = events.Committed if task.output is None else events.Streamed
        after.tell(told(taken.ref.id))
        if task.output is None:
            trust(task, results, after)
        let_go(taken, oldest, after)
    after.settle()
    if taken.living.stuck is not None:
        raise SourceError(f"point {taken.ref.id} is stored, but {taken.living.stuck}")
    return _result(task, taken, results)


def _result(task: Task, taken: Taken, results: Sequence[DiskResult]) -> BackupResult:
    return BackupResult(
        taken.ref.id,
        task.lineage.guest,
        common_mode(results),
        tuple(results),
        taken.living.frozen,
        taken.left is not None,
        Transport.PULL if taken.living.push is None else Transport.PUSH,
        task.bond.adopted is not None,
        taken.part_names,
    )
