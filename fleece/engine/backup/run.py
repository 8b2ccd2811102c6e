"""One backup: decide, take the point, copy, commit, and only then let go of what is not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import secrets
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from fleece import events
from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, PointRef
from fleece.delta.sink import Sink
from fleece.engine.backup.aftermath import Aftermath
from fleece.engine.backup.audit import distrust
from fleece.engine.backup.decide import (
    Decision,
    Lineage,
    ModeWish,
    decide,
    impossible,
    needed_since,
)
from fleece.engine.backup.guest import guest_name
from fleece.engine.backup.identity import Bond, bound
from fleece.engine.backup.options import BackupOptions, BackupResult, DiskResult, common_mode
from fleece.engine.backup.pull import CopyJob, copy_all
from fleece.engine.backup.push import PushJob, push_all
from fleece.engine.backup.reclaim import Reclaim, never_read
from fleece.engine.backup.resume import Asked, find_begun
from fleece.engine.backup.sample import AuditJob, compare_clean, refuse_differing
from fleece.engine.backup.shrunk import cut_at
from fleece.engine.backup.taken import (
    Opened,
    Stream,
    Taken,
    copy_job,
    disk_result,
    open_disk,
    push_job,
)
from fleece.engine.work.needs import check_backup_needs, room_in
from fleece.engine.work.pool import Counter, run_beside
from fleece.errors import SourceError, UsageError
from fleece.extents import Extents
from fleece.pace import Pace
from fleece.source.base import (
    Disk,
    Export,
    Point,
    PushFeed,
    Request,
    Source,
    Transport,
    Wanted,
)
from fleece.source.lost import reads_of
from fleece.store.catalogue import Catalogue
from fleece.store.partial_point import PartialPoint, UnfinishedPoint
from fleece.store.store import Store
from fleece.version import VERSION


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
    guest = guest_name(source, options.guest)
    if not 0 <= options.audit <= 1:
        raise UsageError("the part to audit must be from 0 to 1", where=options.audit)
    if options.workers < 1 or (options.rate is not None and options.rate < 1):
        raise UsageError("workers and rate must be at least 1")
    source.check_ready()
    with store.locked(guest):
        for removed in source.release():
            listener(events.Leftover(removed.kind, removed.item))
        catalogue = store.catalogue()
        for file in catalogue.damaged:
            listener(events.Warned(str(file.error)))
        chain = store.chain_of(guest, catalogue)
        bond = bound(source, catalogue, guest, chain, adopt=options.adopt)
        run = _Run(
            source,
            store,
            options,
            catalogue,
            guest,
            chain,
            bond,
            listener,
            cancel or CancelToken(),
            output,
        )
        return run.execute()


class _Run:
    """The state of one backup."""

    def __init__(
        self,
        source: Source,
        store: Store,
        options: BackupOptions,
        catalogue: Catalogue,
        guest: str,
        chain: str,
        bond: Bond,
        listener: events.Listener,
        cancel: CancelToken,
        output: Sink | None,
    ) -> None:
        self._output = output
        self._source = source
        self._store = store
        self._options = options
        self._catalogue = catalogue
        self._guest = guest
        self._chain = chain
        self._bond = bond
        self._listener = listener
        self._cancel = cancel
        self._lineage = Lineage(source, catalogue, guest, chain)
        self._pace = None if options.rate is None else Pace(options.rate, cancel)

    def execute(self) -> BackupResult:
        """Do it."""
        after = Aftermath(self._listener)
        self._check_needs()
        with after.rest(), contextlib.ExitStack() as stack:
            taken = self._go_on(stack) or self._take(stack)
            if self._output is None:
                results = self._store_point(taken)
                oldest = None
            else:
                results = self._fill(Stream(self._output), taken)
                oldest = self._oldest_needed(taken)
            after.stored = True
            told = events.Committed if self._output is None else events.Streamed
            after.tell(told(taken.ref.id))
            if self._output is None:
                self._trust(results, after)
            after.attempt(taken.living.close)
            after.attempt(lambda: self._forget(taken, oldest, after))
        after.settle()
        if taken.living.stuck is not None:
            raise SourceError(f"point {taken.ref.id} is stored, but {taken.living.stuck}")
        return BackupResult(
            taken.ref.id,
            self._guest,
            common_mode(results),
            tuple(results),
            taken.living.frozen,
            taken.left is not None,
            Transport.PULL if taken.living.push is None else Transport.PUSH,
            self._bond.adopted is not None,
        )

    def _check_needs(self) -> None:
        """See that all is there that the point will need, before anything is changed."""
        disks = self._source.inventory().choose(self._options.disks)
        chosen = self._source.transport(self._options.transport, disks)
        check_backup_needs(chosen.transport)
        self._source.check_needs()
        if self._output is None:
            room_in(self._store.backend)

    def _warn_of_room(self, decisions: Sequence[Decision]) -> None:
        """Warn if the store may not take all that has changed. Of a whole disk nobody can tell."""
        changed = sum(made.since.changed for made in decisions if made.since is not None)
        left = room_in(self._store.backend)
        if left is not None and left < changed:
            text = f"{self._store.where}: the store may run out of room: {left} bytes are left, "
            self._listener(events.Warned(f"{text}and {changed} bytes have changed"))

    def _forget(self, taken: Taken, oldest: int | None, after: Aftermath) -> None:
        for kept in taken.living.committed(oldest):
            after.tell(events.Warned(kept))

    def _go_on(self, stack: contextlib.ExitStack) -> Taken | None:
        """Find what interrupted backups left: resume one point of it, and take down the rest."""
        options = self._options
        asked = Asked(self._lineage, self._bond, options.mode, options.disks, options.transport)
        begun = find_begun(self._candidates(), asked, stack, self._tell_doubt)
        keep = None if begun is None else begun.left
        for path in self._store.remove_partial(self._guest, keep):
            self._listener(events.Leftover("partial point", path))
        for removed in self._source.recover(self._chain):
            self._listener(events.Leftover(removed.kind, removed.item))
        for doubt in self._source.doubts:
            self._listener(events.Warned(doubt))
        if begun is None:
            return None
        reason = f"resumes point {begun.left.ref.id} of an interrupted backup"
        self._tell_plan(begun.decisions, reason)
        for warning in begun.living.warnings:
            self._listener(events.Warned(warning))
        return Taken(begun.left.ref, begun.decisions, begun.living, begun.left)

    def _candidates(self) -> Sequence[UnfinishedPoint]:
        """Points that may be resumed: none with a disk that failed an audit."""
        if not self._options.resume or self._output is not None:
            return ()
        return [
            left
            for left in self._store.unfinished(self._guest)
            if all(self._store.distrusted(left.chain, head.disk) is None for head in left.heads)
        ]

    def _take(self, stack: contextlib.ExitStack) -> Taken:
        """Decide, and take a new point."""
        inventory = self._source.inventory()
        disks = inventory.choose(self._options.disks)
        if self._output is not None and len(disks) != 1:
            raise UsageError(
                f"a stream takes one disk, and these are {len(disks)}: "
                f"{', '.join(disk.name for disk in disks)}",
                hint="choose one with --disk",
            )
        decisions = tuple(self._decide(disk) for disk in disks)
        chosen = self._source.transport(self._options.transport, disks)
        if chosen.transport is Transport.PUSH:
            decisions = self._pushed(decisions, chosen.reason)
        self._tell_plan(decisions)
        if self._output is None:
            self._warn_of_room(decisions)
        gone = self._gone({disk.name for disk in inventory.disks})
        self._cancel.check()
        ref = self._new_point(decisions)
        wanted = [Wanted(made.disk, made.since) for made in decisions]
        request = Request(self._chain, ref.sequence, ref.id, wanted, transport=chosen.transport)
        living = stack.enter_context(self._source.take(request))
        self._listener(events.PointTaken(ref.id, tuple(disk.name for disk in disks)))
        for warning in living.warnings:
            self._listener(events.Warned(warning))
        return Taken(ref, decisions, living, gone=gone)

    def _gone(self, present: Collection[str]) -> tuple[str, ...]:
        """Disks of the chain that the guest has no more, and that no point says so of yet."""
        newest: dict[str, str] = {}
        for point in self._catalogue.of_chain(self._guest, self._chain):
            newest |= dict.fromkeys(point.disks, point.id)
            for entry in point.disks.values():
                for name in entry.header.gone:
                    newest.pop(name, None)
        gone = {name: point for name, point in sorted(newest.items()) if name not in present}
        for name, point_id in gone.items():
            self._listener(events.DiskGone(name, point_id))
        return tuple(gone)

    def _pushed(self, decisions: Sequence[Decision], reason: str | None) -> tuple[Decision, ...]:
        """What is to be done if the source pushes.

        It tells only what changed since the newest point. For a differential all is pushed, and
        what the full holds already is not stored.
        """
        if self._options.audit:
            raise UsageError(
                "an audit reads what did not change, but a push sends only what did",
                hint="leave --audit out, or choose --transport pull",
            )
        return tuple(
            dataclasses.replace(
                made,
                reason=f"{made.reason}; {reason}",
                since=None if made.mode is Mode.DIFFERENTIAL else made.since,
                more_dirty=None,
            )
            for made in decisions
        )

    def _decide(self, disk: Disk) -> Decision:
        distrusted = self._bond.adopted or self._store.distrusted(self._chain, disk.name)
        return decide(disk, self._options.mode, self._lineage, distrusted)

    def _tell_plan(self, decisions: Sequence[Decision], reason: str | None = None) -> None:
        for made in decisions:
            self._listener(events.DiskPlanned(made.disk.name, made.mode, reason or made.reason))

    def _tell_doubt(self, left: UnfinishedPoint, reason: str) -> None:
        text = f"point {left.ref.id} of an interrupted backup cannot be resumed: {reason}"
        self._listener(events.Warned(text))

    def _new_point(self, decisions: Sequence[Decision]) -> PointRef:
        stored = [p.sequence for p in self._catalogue.points if p.guest == self._guest]
        disks = [made.disk for made in decisions]
        in_source = self._source.highest_sequence(self._chain, disks)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return PointRef(secrets.token_hex(5), max([in_source, *stored]) + 1, now)

    def _store_point(self, taken: Taken) -> list[DiskResult]:
        partial = (
            self._store.begin(self._guest, taken.ref.id, taken.ref.sequence)
            if taken.left is None
            else self._store.resume(taken.left)
        )
        try:
            results = self._fill(partial, taken)
            self._cancel.check()
            run_beside(partial.commit, taken.living.watch)
        except BaseException:
            partial.discard()
            raise
        return results

    def _trust(self, results: Sequence[DiskResult], after: Aftermath) -> None:
        """What was read as a whole is right again, whatever an audit found before."""
        tried = Attempts()
        for done in results:
            if done.mode in (Mode.FULL, Mode.RESCAN):
                with tried.step():
                    self._store.trust(self._chain, done.disk)
        for text in tried.texts:
            after.tell(events.Warned(f"the next backup is a rescan again: {text}"))

    def _oldest_needed(self, taken: Taken) -> int:
        """The sequence of the oldest segment that a next backup of the streamed disk needs."""
        (made,) = taken.decisions
        needed = needed_since(made.disk, self._lineage)
        return taken.ref.sequence if needed is None else needed

    def _fill(self, sinks: PartialPoint | Stream, taken: Taken) -> list[DiskResult]:
        with contextlib.ExitStack() as stack:
            if taken.living.push is None:
                return self._copy(sinks, taken, stack)
            return self._push(sinks, taken, taken.living.push, stack)

    def _copy(
        self, sinks: PartialPoint | Stream, taken: Taken, stack: contextlib.ExitStack
    ) -> list[DiskResult]:
        living = taken.living
        opened = self._open(taken, stack)
        jobs, audits = self._jobs(sinks, taken, opened)
        kept = sum(job.kept_bytes for job in jobs)
        if taken.left is not None:
            names = tuple(made.disk.name for made in taken.decisions)
            self._listener(events.Resumed(taken.ref.id, taken.ref.time, names, kept))
        counter = self._counter(kept + sum(job.dirty.total for job in jobs))
        counter.done = kept
        with reads_of(living):
            copy_all(jobs, counter, self._cancel, self._options.workers, living.watch)
            self._audit(audits, living)
        living.check()
        refuse_differing(audits)
        audited = {job.name: job.compared_bytes for job in audits}
        return self._finish(sinks, taken, [disk.made for disk in opened], jobs, audited)

    def _push(
        self,
        sinks: PartialPoint | Stream,
        taken: Taken,
        push: PushFeed,
        stack: contextlib.ExitStack,
    ) -> list[DiskResult]:
        living, protection = taken.living, self._store.protection
        jobs = []
        for made in taken.decisions:
            base = stack.enter_context(self._base(made))
            granularity = None if made.since is None else living.granularity
            head = self._header(taken, made, made.disk.size, granularity)
            sink = sinks.create(made.disk.name)
            jobs.append(push_job(made, head, sink, base, protection))
        push.rate = self._options.rate
        push_all(jobs, push, self._counter, self._cancel, self._options.workers, living.watch)
        living.check()
        return self._finish(sinks, taken, taken.decisions, jobs, {})

    def _counter(self, total: int) -> Counter:
        return Counter(self._listener, events.Phase.BACKUP, self._guest, total)

    def _finish(
        self,
        sinks: PartialPoint | Stream,
        taken: Taken,
        decisions: Sequence[Decision],
        jobs: Sequence[CopyJob | PushJob],
        audited: Mapping[str, int],
    ) -> list[DiskResult]:
        # The point is not needed any more, but the guest fills its scratch until it is closed.
        finish = [job.writer.finish for job in jobs]
        summaries = run_beside(lambda: [each() for each in finish], taken.living.watch)
        return [
            disk_result(
                made, job, summary, sinks.place(made.disk.name), audited.get(made.disk.name, 0)
            )
            for made, job, summary in zip(decisions, jobs, summaries, strict=True)
        ]

    def _open(self, taken: Taken, stack: contextlib.ExitStack) -> list[Opened]:
        """The point's disks, open; one that was cut since its parent is to be rescanned."""
        found = []
        for made, export in zip(taken.decisions, taken.living.exports, strict=True):
            base = stack.enter_context(self._base(made))
            opened = open_disk(made, export, base, self._pace, self._cancel)
            if taken.left is None and base is not None and made.mode is not Mode.RESCAN:
                with reads_of(taken.living):
                    opened = self._checked(opened, base)
            found.append(opened)
        return found

    def _checked(self, opened: Opened, base: Chain) -> Opened:
        """The disk as it is, or to be rescanned because it was shrunk and grown back."""
        place = cut_at(base, opened.disk, opened.dirty)
        if place is None:
            return opened
        name = opened.made.disk.name
        reason = (
            "the disk was shrunk and grown back, or written behind the source's back: byte "
            f"{place} is called unchanged, but is not what the chain holds"
        )
        if self._options.mode is not ModeWish.AUTO:
            raise impossible(name, self._options.mode, reason)
        self._listener(events.DiskPlanned(name, Mode.RESCAN, reason))
        return opened.to_be_rescanned(reason)

    def _jobs(
        self, sinks: PartialPoint | Stream, taken: Taken, opened: Sequence[Opened]
    ) -> tuple[list[CopyJob], list[AuditJob]]:
        """The work on all disks; what an audit is to compare of those with a parent."""
        jobs, audits = [], []
        for disk, export in zip(opened, taken.living.exports, strict=True):
            job = self._job(sinks, taken, disk, export)
            jobs.append(job)
            if disk.base is not None and disk.made.mode is not Mode.RESCAN:
                touched = job.dirty.union(job.kept)
                clean = Extents.whole(export.size).subtract(touched)
                audits.append(AuditJob(export.disk, job.disk, clean, disk.base))
            if taken.living.reclaims and not self._options.audit:
                taken.living.reclaim(export.disk, never_read(job.dirty, export.size))
        return jobs, audits

    def _job(
        self, sinks: PartialPoint | Stream, taken: Taken, opened: Opened, export: Export
    ) -> CopyJob:
        name, protection = export.disk, self._store.protection
        if taken.left is None or isinstance(sinks, Stream):
            head = self._header(taken, opened.made, export.size, opened.granularity)
            if isinstance(sinks, Stream):
                return copy_job(opened, head, sinks.create(name), protection)
            sink = sinks.create(name)
            job = copy_job(opened, head, sink, protection)
            if taken.living.reclaims:
                job.stored = Reclaim(taken.living, name, sink.sync).stored
            return job
        sink, proven = sinks.reopen(name)
        return copy_job(opened, proven.head, sink, protection, proven)

    def _audit(self, audits: Sequence[AuditJob], living: Point) -> None:
        """Hold a sample of what is clean against the chain; note at once what is not so."""
        fraction = self._options.audit
        if not fraction:
            return
        total = sum(round(job.clean.total * fraction) for job in audits)
        counter = Counter(self._listener, events.Phase.AUDIT, self._guest, total)
        try:
            compare_clean(
                audits, fraction, counter, self._cancel, self._options.workers, living.watch
            )
        finally:
            distrust(self._store, self._chain, audits)

    @contextlib.contextmanager
    def _base(self, made: Decision) -> Iterator[Chain | None]:
        if made.parent is None:
            yield None
            return
        with self._catalogue.chain(made.parent) as chain:
            yield chain

    def _header(self, taken: Taken, made: Decision, size: int, granularity: int | None) -> Header:
        parent = made.parent
        return Header(
            file_id=uuid.uuid4(),
            chain=self._chain,
            guest=self._guest,
            disk=made.disk.name,
            size=size,
            point=taken.ref,
            parent=None if parent is None else parent.as_parent(),
            mode=made.mode,
            disks=tuple(each.disk.name for each in taken.decisions),
            level=self._options.level,
            granularity=granularity,
            producer=_producer(self._source),
            algorithm=self._store.algorithm,
            gone=taken.gone,
            identity=self._bond.identity,
        )


def _producer(source: Source) -> dict[str, str]:
    return {"fleece": VERSION, "python": platform.python_version(), **source.producer()}
