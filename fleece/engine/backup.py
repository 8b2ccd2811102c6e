"""One backup: decide, take the point, copy, commit, and only then let go of what is not needed."""

from __future__ import annotations

import contextlib
import enum
import platform
import secrets
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, PointRef, is_name
from fleece.delta.partial import Proven
from fleece.delta.writer import DeltaWriter, Sink, Summary
from fleece.engine.copy import CopyJob, copy_all, dirty_leaves, open_export
from fleece.engine.decide import Decision, ModeWish, decide
from fleece.engine.pool import WORKERS, Counter
from fleece.engine.rescan import HeldLeaves
from fleece.engine.resume import Asked, find_begun
from fleece.errors import PointError, SourceError, UsageError
from fleece.extents import Extents
from fleece.source.base import Export, Point
from fleece.source.qemu.source import QemuSource, Wanted
from fleece.store.catalogue import Catalogue
from fleece.store.folder import FolderStore, PartialPoint, UnfinishedPoint
from fleece.tree import BlankDisk
from fleece.version import VERSION

DEFAULT_LEVEL = 1
"""The zstd level (docs/benchmarks.rst tells why)."""


@dataclass(frozen=True)
class BackupOptions:
    """How to back up.

    Attributes:
        mode: what is wanted; auto decides for each disk.
        guest: the guest's name in the store; None: the source's own.
        disks: names; empty: all writable ones.
        level: zstd level.
        workers: threads that read, hash and compress.
        resume: go on with a point that a dead run left, if it is whole; else always take a new one.
    """

    mode: ModeWish = ModeWish.AUTO
    guest: str | None = None
    disks: tuple[str, ...] = ()
    level: int = DEFAULT_LEVEL
    workers: int = WORKERS
    resume: bool = True


@dataclass(frozen=True)
class DiskResult:
    """What became of one disk. Bytes are of disk, but `stored_bytes` of file.

    `dirty_bytes` are those that the delta holds, zeros among them, in whole leaves. `read_bytes`
    were read by this run; `resumed_bytes` by a dead one before, and not again.
    """

    disk: str
    size: int
    root: str
    mode: Mode
    dirty_bytes: int
    read_bytes: int
    stored_bytes: int
    delta: str
    resumed_bytes: int = 0


class PointMode(enum.StrEnum):
    """The mode of a whole point: its disks' common one, or mixed."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    RESCAN = "rescan"
    MIXED = "mixed"


@dataclass(frozen=True)
class BackupResult:
    """A committed point. `resumed`: a dead run took it, at the time that its headers say."""

    point: str
    guest: str
    mode: PointMode
    disks: tuple[DiskResult, ...]
    resumed: bool = False


def backup(
    source: QemuSource,
    store: FolderStore,
    options: BackupOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> BackupResult:
    """Back a guest's disks up into a store, as one point.

    If a dead run into this store left its point alive, that point is gone on with.

    When this returns, the point is durable and its segments are rotated. When it raises, the chain
    is as it was, and nothing of the attempt is left but segments that the next point needs.

    Raises:
        FleeceError: of the family that says what failed.
    """
    options = options or BackupOptions()
    guest = options.guest or source.guest()
    if not is_name(guest):
        raise UsageError("the guest's name must be printable, of 1024 characters at most")
    with store.locked(guest):
        catalogue = store.catalogue()
        for trouble in catalogue.damaged:
            listener(events.Warned(str(trouble)))
        known = catalogue.of_guest(guest)
        chain = known[-1].chain if known else store.chain_id(guest)
        run = _Run(
            source, store, options, catalogue, guest, chain, listener, cancel or CancelToken()
        )
        return run.execute()


@dataclass(frozen=True)
class _Taken:
    """A living point.

    Attributes:
        ref: its name.
        decisions: one for each disk.
        living: the point in the source.
        left: what a dead run has stored of it already; None: it is new.
    """

    ref: PointRef
    decisions: tuple[Decision, ...]
    living: Point
    left: UnfinishedPoint | None = None


class _Run:
    """The state of one backup."""

    def __init__(
        self,
        source: QemuSource,
        store: FolderStore,
        options: BackupOptions,
        catalogue: Catalogue,
        guest: str,
        chain: str,
        listener: events.Listener,
        cancel: CancelToken,
    ) -> None:
        self._source = source
        self._store = store
        self._options = options
        self._catalogue = catalogue
        self._guest = guest
        self._chain = chain
        self._listener = listener
        self._cancel = cancel

    def execute(self) -> BackupResult:
        """Do it."""
        results: list[DiskResult] = []
        with self._stored_is_stored(results), contextlib.ExitStack() as stack:
            taken = self._go_on(stack) or self._take(stack)
            living = taken.living
            results += self._store_point(taken)
            living.close()
            for kept in living.committed():
                self._listener(events.Warned(kept))
        resumed = taken.left is not None
        mode = _common_mode(results)
        return BackupResult(taken.ref.id, self._guest, mode, tuple(results), resumed)

    @contextlib.contextmanager
    def _stored_is_stored(self, results: Sequence[DiskResult]) -> Iterator[None]:
        """Once there are results the point is durable, and QEMU's failures no failure of it."""
        try:
            yield
        except SourceError as error:
            if not results:
                raise
            # What is left in QEMU, the next backup finds by its name.
            text = f"the point is stored, but QEMU could not be tidied up: {error}"
            self._listener(events.Warned(text))

    def _go_on(self, stack: contextlib.ExitStack) -> _Taken | None:
        """Find what dead runs left: go on with one point of it, and take all the rest down."""
        candidates = self._store.unfinished(self._guest) if self._options.resume else []
        asked = Asked(self._guest, self._chain, self._options.mode, self._options.disks)
        begun = find_begun(
            candidates, self._source, self._catalogue, asked, stack, self._tell_doubt
        )
        keep = None if begun is None else begun.left
        for path in self._store.remove_partial(self._guest, keep):
            self._listener(events.Leftover("partial point", path))
        for removed in self._source.clean(self._chain):
            self._listener(events.Leftover(removed.kind, removed.item))
        if begun is None:
            return None
        reason = f"goes on with point {begun.left.ref.id} of a dead run"
        self._tell_plan(begun.decisions, reason)
        return _Taken(begun.left.ref, begun.decisions, begun.living, begun.left)

    def _take(self, stack: contextlib.ExitStack) -> _Taken:
        """Decide, and take a new point."""
        disks = self._source.inventory().choose(self._options.disks)
        decisions = tuple(
            decide(disk, self._options.mode, self._catalogue, self._guest, self._chain)
            for disk in disks
        )
        self._tell_plan(decisions)
        self._cancel.check()
        ref = self._new_point(decisions)
        wanted = [Wanted(made.disk, made.bitmaps) for made in decisions]
        point = self._source.point(self._chain, ref.sequence, ref.id, wanted)
        living = stack.enter_context(point)
        self._listener(events.PointTaken(ref.id, tuple(disk.name for disk in disks)))
        return _Taken(ref, decisions, living)

    def _tell_plan(self, decisions: Sequence[Decision], reason: str | None = None) -> None:
        for made in decisions:
            self._listener(events.DiskPlanned(made.disk.name, made.mode, reason or made.reason))

    def _tell_doubt(self, left: UnfinishedPoint, reason: str) -> None:
        text = f"point {left.ref.id} of a dead run cannot be gone on with: {reason}"
        self._listener(events.Warned(text))

    def _new_point(self, decisions: Sequence[Decision]) -> PointRef:
        stored = [p.sequence for p in self._catalogue.points if p.guest == self._guest]
        in_qemu = [number for made in decisions for number in made.disk.segments(self._chain)]
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return PointRef(secrets.token_hex(5), max([0, *stored, *in_qemu]) + 1, now)

    def _store_point(self, taken: _Taken) -> list[DiskResult]:
        partial = (
            self._store.begin(self._guest, taken.ref.id, taken.ref.sequence)
            if taken.left is None
            else self._store.resume(taken.left)
        )
        try:
            results = self._copy(partial, taken)
            self._cancel.check()
            partial.commit()
        except BaseException:
            partial.discard()
            raise
        self._listener(events.Committed(taken.ref.id))
        return results

    def _copy(self, partial: PartialPoint, taken: _Taken) -> list[DiskResult]:
        decisions, living = taken.decisions, taken.living
        with contextlib.ExitStack() as stack:
            jobs = []
            for made, export in zip(decisions, living.exports, strict=True):
                base = stack.enter_context(self._base(made))
                jobs.append(self._job(partial, taken, made, export, base))
            kept = sum(job.kept_bytes for job in jobs)
            if taken.left is not None:
                names = tuple(made.disk.name for made in decisions)
                self._listener(events.Resumed(taken.ref.id, taken.ref.time, names, kept))
            total = kept + sum(job.dirty.total for job in jobs)
            counter = Counter(self._listener, events.Phase.BACKUP, self._guest, total)
            counter.done = kept
            copy_all(jobs, counter, self._cancel, self._options.workers, living.watch)
            living.check()
            summaries = [job.writer.finish() for job in jobs]
        return [
            _result(made, job, summary, str(partial.final / partial.file_name(made.disk.name)))
            for made, job, summary in zip(decisions, jobs, summaries, strict=True)
        ]

    def _job(
        self,
        partial: PartialPoint,
        taken: _Taken,
        made: Decision,
        export: Export,
        base: Chain | None,
    ) -> CopyJob:
        name = made.disk.name
        if taken.left is None:
            head = self._header(taken.ref, made, export, [d.disk.name for d in taken.decisions])
            return _job(made, export, head, partial.create(name), base)
        sink, proven = partial.reopen(name)
        return _job(made, export, proven.head, sink, base, proven)

    @contextlib.contextmanager
    def _base(self, made: Decision) -> Iterator[Chain | None]:
        if made.parent is None:
            yield None
            return
        with self._catalogue.chain(made.parent) as chain:
            yield chain

    def _header(
        self, point: PointRef, made: Decision, export: Export, disks: Sequence[str]
    ) -> Header:
        parent = made.parent
        return Header(
            file_id=uuid.uuid4(),
            chain=self._chain,
            guest=self._guest,
            disk=made.disk.name,
            size=export.size,
            point=point,
            parent=None if parent is None else parent.as_parent(),
            mode=made.mode,
            disks=tuple(disks),
            level=self._options.level,
            granularity=export.granularity,
            producer=_producer(self._source),
        )


def _job(
    made: Decision,
    export: Export,
    head: Header,
    sink: Sink,
    base: Chain | None,
    proven: Proven | None = None,
) -> CopyJob:
    """The work on one disk, less what a dead run is proven to have done of it."""
    disk = open_export(export)
    dirty = dirty_leaves(export, disk, made.more_dirty)
    done = Extents.empty() if proven is None else proven.extents()
    if len(done.subtract(dirty)):
        raise PointError(
            "a dead run stored what did not change", where=head.disk, hint="run the backup again"
        )
    writer = DeltaWriter(sink, head, base or BlankDisk(head.geometry), proven)
    held = HeldLeaves(base) if base is not None and made.mode is Mode.RESCAN else None
    dirty = dirty.subtract(done)
    return CopyJob(disk, dirty, writer, head.geometry, head.level, held, done.total)


def _result(made: Decision, job: CopyJob, summary: Summary, path: str) -> DiskResult:
    return DiskResult(
        disk=made.disk.name,
        size=job.geometry.size,
        root=summary.root.hex(),
        mode=made.mode,
        dirty_bytes=summary.data_bytes + summary.zero_bytes,
        read_bytes=job.read_bytes,
        stored_bytes=summary.stored_bytes,
        delta=path,
        resumed_bytes=job.kept_bytes,
    )


def _producer(source: QemuSource) -> dict[str, str]:
    return {"fleece": VERSION, "python": platform.python_version(), "qemu": source.version}


def _common_mode(results: Sequence[DiskResult]) -> PointMode:
    modes = {result.mode for result in results}
    return PointMode(modes.pop()) if len(modes) == 1 else PointMode.MIXED
