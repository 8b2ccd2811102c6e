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
from fleece.delta.protection import Protection
from fleece.delta.writer import DeltaWriter, Sink, Summary
from fleece.engine.audit import distrust
from fleece.engine.copy import CopyJob, copy_all, dirty_leaves, open_export
from fleece.engine.decide import Decision, ModeWish, decide
from fleece.engine.pool import WORKERS, Counter, run_beside
from fleece.engine.rescan import HeldLeaves
from fleece.engine.sample import AuditJob, compare_clean, refuse_differing
from fleece.errors import SourceError, StoreError, UsageError
from fleece.extents import Extents
from fleece.hashing import Buffer
from fleece.source.base import Export, Point
from fleece.source.qemu.agent import GuestAgent
from fleece.source.qemu.source import QemuSource, Wanted
from fleece.store.catalogue import Catalogue
from fleece.store.folder import FolderStore, PartialPoint
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
        audit: the part of the leaves said to be clean, 0 to 1, that is read and held against the
            chain all the same, sampled anew each time.
        agent: of the guest, which freezes its file systems for the moment of the point.
    """

    mode: ModeWish = ModeWish.AUTO
    guest: str | None = None
    disks: tuple[str, ...] = ()
    level: int = DEFAULT_LEVEL
    workers: int = WORKERS
    audit: float = 0.0
    agent: GuestAgent | None = None


@dataclass(frozen=True)
class DiskResult:
    """What became of one disk. Bytes are of disk, but `stored_bytes` of file.

    `dirty_bytes` are those that the delta holds, zeros among them, in whole leaves;
    `audited_bytes` were clean, and found to be what the chain holds.
    """

    disk: str
    size: int
    root: str
    mode: Mode
    dirty_bytes: int
    read_bytes: int
    stored_bytes: int
    delta: str
    audited_bytes: int = 0


class PointMode(enum.StrEnum):
    """The mode of a whole point: its disks' common one, or mixed."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    RESCAN = "rescan"
    MIXED = "mixed"


@dataclass(frozen=True)
class BackupResult:
    """A committed point. `frozen`: the guest's agent held its file systems still for it."""

    point: str
    guest: str
    mode: PointMode
    disks: tuple[DiskResult, ...]
    frozen: bool = False


def backup(
    source: QemuSource,
    store: FolderStore,
    options: BackupOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    output: Sink | None = None,
) -> BackupResult:
    """Back a guest's disks up into a store, as one point.

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
    guest = options.guest or source.guest()
    if not is_name(guest):
        raise UsageError("the guest's name must be printable, of 1024 characters at most")
    if not 0 <= options.audit <= 1:
        raise UsageError("the part to audit goes from 0 to 1", where=options.audit)
    with store.locked(guest):
        if options.agent is not None and options.agent.thaw_left():
            listener(events.Leftover("freeze of the guest", options.agent.path))
        catalogue = store.catalogue()
        for trouble in catalogue.damaged:
            listener(events.Warned(str(trouble)))
        known = catalogue.of_guest(guest)
        chain = known[-1].chain if known else store.chain_id(guest)
        for path in store.remove_partial(guest):
            listener(events.Leftover("partial point", path))
        for removed in source.clean(chain):
            listener(events.Leftover(removed.kind, removed.item))
        run = _Run(
            source,
            store,
            options,
            catalogue,
            guest,
            chain,
            listener,
            cancel or CancelToken(),
            output,
        )
        return run.execute()


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
        output: Sink | None,
    ) -> None:
        self._output = output
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
        disks = self._source.inventory().choose(self._options.disks)
        if self._output is not None and len(disks) != 1:
            raise UsageError(
                f"a stream takes one disk, and these are {len(disks)}: "
                f"{', '.join(disk.name for disk in disks)}",
                hint="choose one with --disk",
            )
        decisions = [
            decide(
                disk,
                self._options.mode,
                self._catalogue,
                self._guest,
                self._chain,
                self._store.distrusted(self._chain, disk.name),
            )
            for disk in disks
        ]
        for made in decisions:
            self._listener(events.DiskPlanned(made.disk.name, made.mode, made.reason))
        self._cancel.check()
        point = self._new_point(decisions)
        wanted = [Wanted(made.disk, made.bitmaps) for made in decisions]
        results: list[DiskResult] = []
        try:
            with self._source.point(
                self._chain, point.sequence, point.id, wanted, self._options.agent
            ) as living:
                names = tuple(disk.name for disk in disks)
                self._listener(events.PointTaken(point.id, names))
                for warning in living.warnings:
                    self._listener(events.Warned(warning))
                if self._output is None:
                    results += self._store_point(point, decisions, living)
                    oldest = None
                else:
                    results += self._stream_point(self._output, point, decisions, living)
                    oldest = self._newest_stored(point)
                living.close()
                for kept in living.committed(oldest):
                    self._listener(events.Warned(kept))
        except SourceError as error:
            if not results:
                raise
            # The point is durable. What is left in QEMU, the next backup finds by its name.
            text = f"point {point.id} is stored, but QEMU could not be tidied up: {error}"
            self._listener(events.Warned(text))
        if living.freeze.stuck is not None:
            raise SourceError(f"point {point.id} is stored, but {living.freeze.stuck}")
        frozen = living.freeze.frozen
        return BackupResult(point.id, self._guest, _common_mode(results), tuple(results), frozen)

    def _new_point(self, decisions: Sequence[Decision]) -> PointRef:
        stored = [p.sequence for p in self._catalogue.points if p.guest == self._guest]
        in_qemu = [number for made in decisions for number in made.disk.segments(self._chain)]
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return PointRef(secrets.token_hex(5), max([0, *stored, *in_qemu]) + 1, now)

    def _store_point(
        self,
        point: PointRef,
        decisions: Sequence[Decision],
        living: Point,
    ) -> list[DiskResult]:
        partial = self._store.begin(self._guest, point.id, point.sequence)
        try:
            results = self._copy(partial, point, decisions, living)
            self._cancel.check()
            run_beside(partial.commit, living.watch)
        except BaseException:
            partial.discard()
            raise
        self._listener(events.Committed(point.id))
        self._trust(decisions)
        return results

    def _trust(self, decisions: Sequence[Decision]) -> None:
        """What was read as a whole is right again, whatever an audit found before."""
        for made in decisions:
            if made.mode in (Mode.FULL, Mode.RESCAN):
                try:
                    self._store.trust(self._chain, made.disk.name)
                except StoreError as error:
                    self._listener(events.Warned(f"the next backup is a rescan again: {error}"))

    def _stream_point(
        self, output: Sink, point: PointRef, decisions: Sequence[Decision], living: Point
    ) -> list[DiskResult]:
        results = self._copy(_Stream(output), point, decisions, living)
        self._listener(events.Streamed(point.id))
        return results

    def _newest_stored(self, point: PointRef) -> int:
        """The sequence of the newest point that a next backup can build on for sure."""
        stored = self._catalogue.of_guest(self._guest)
        return stored[-1].sequence if stored else point.sequence

    def _copy(
        self,
        partial: PartialPoint | _Stream,
        point: PointRef,
        decisions: Sequence[Decision],
        living: Point,
    ) -> list[DiskResult]:
        with contextlib.ExitStack() as stack:
            jobs = []
            audits = []
            for made, export in zip(decisions, living.exports, strict=True):
                base = stack.enter_context(self._base(made))
                head = self._header(point, made, export, tuple(d.disk.name for d in decisions))
                sink = partial.create(made.disk.name)
                jobs.append(_job(made, export, head, sink, base, self._store.protection))
                if base is not None and made.mode is not Mode.RESCAN:
                    clean = Extents.whole(export.size).subtract(jobs[-1].dirty)
                    audits.append(AuditJob(made.disk.name, jobs[-1].disk, clean, base))
            total = sum(job.dirty.total for job in jobs)
            counter = Counter(self._listener, events.Phase.BACKUP, self._guest, total)
            copy_all(jobs, counter, self._cancel, self._options.workers, living.watch)
            self._audit(audits, living)
            living.check()
            refuse_differing(audits)
            # The point is not needed any more, but the guest fills its scratch until it is closed.
            finish = [job.writer.finish for job in jobs]
            summaries = run_beside(lambda: [each() for each in finish], living.watch)
        audited = {job.name: job.compared_bytes for job in audits}
        return [
            _result(
                made, job, summary, partial.place(made.disk.name), audited.get(made.disk.name, 0)
            )
            for made, job, summary in zip(decisions, jobs, summaries, strict=True)
        ]

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

    def _header(
        self, point: PointRef, made: Decision, export: Export, disks: tuple[str, ...]
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
            disks=disks,
            level=self._options.level,
            granularity=export.granularity,
            producer=_producer(self._source),
            algorithm=self._store.algorithm,
        )


class _Stream:
    """In the place of a `PartialPoint`: the delta of its one disk goes to the caller's stream."""

    def __init__(self, output: Sink) -> None:
        self._output = output

    def create(self, disk: str) -> Sink:
        """The stream."""
        return self

    def place(self, disk: str) -> str:
        """As the command line writes it."""
        return "-"

    def write(self, data: Buffer) -> int | None:
        """Pass bytes on."""
        try:
            return self._output.write(data)
        except OSError as error:
            raise StoreError(f"the output takes no more ({error.strerror})") from error


def _job(
    made: Decision,
    export: Export,
    head: Header,
    sink: Sink,
    base: Chain | None,
    protection: Protection | None,
) -> CopyJob:
    disk = open_export(export)
    dirty = dirty_leaves(export, disk, made.more_dirty)
    writer = DeltaWriter(sink, head, base or BlankDisk(head.geometry), protection)
    held = HeldLeaves(base) if base is not None and made.mode is Mode.RESCAN else None
    return CopyJob(disk, dirty, writer, head.geometry, head.level, held)


def _result(made: Decision, job: CopyJob, summary: Summary, path: str, audited: int) -> DiskResult:
    return DiskResult(
        disk=made.disk.name,
        size=job.geometry.size,
        root=summary.root.hex(),
        mode=made.mode,
        dirty_bytes=summary.data_bytes + summary.zero_bytes,
        read_bytes=job.read_bytes,
        stored_bytes=summary.stored_bytes,
        delta=path,
        audited_bytes=audited,
    )


def _producer(source: QemuSource) -> dict[str, str]:
    return {"fleece": VERSION, "python": platform.python_version(), "qemu": source.version}


def _common_mode(results: Sequence[DiskResult]) -> PointMode:
    modes = {result.mode for result in results}
    return PointMode(modes.pop()) if len(modes) == 1 else PointMode.MIXED
