"""A living point on its way into a store, or into a stream, whether it is pulled or pushed."""

from __future__ import annotations

import contextlib
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleece.delta.chain import Chain
from fleece.delta.header import Header
from fleece.delta.partial import Proven
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.engine.backup.decide import Decision
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.take import Taken
from fleece.engine.backup.task import Task
from fleece.engine.work.pool import run_beside
from fleece.errors import StoreError
from fleece.hashing import Buffer
from fleece.store.partial_point import PartialPoint
from fleece.tree import BlankDisk, Geometry
from fleece.version import VERSION


@dataclass(frozen=True)
class Opening:
    """Where one disk's delta goes.

    Attributes:
        sink: takes its bytes.
        proven: what an interrupted backup has written of it; None: nothing.
        sync: makes durable what was written; None: it cannot be known to be so before the end.
    """

    sink: Sink
    proven: Proven | None = None
    sync: Callable[[], None] | None = None


class Sinks(Protocol):
    """Where a point's deltas go."""

    def open(self, disk: str) -> Opening:
        """Begin a disk's delta, or resume it."""

    def place(self, disk: str) -> str:
        """Where it will be, for messages."""


class Job(Protocol):
    """The work on one disk, when it is done."""

    @property
    def writer(self) -> DeltaWriter:
        """Its delta, not finished yet."""

    @property
    def geometry(self) -> Geometry:
        """Of its tree."""

    @property
    def read_bytes(self) -> int:
        """Bytes that were read."""

    @property
    def kept_bytes(self) -> int:
        """Bytes that an interrupted backup had read before."""


@dataclass(frozen=True)
class Filling:
    """A point and where it goes.

    Attributes:
        task: whose point.
        taken: the point.
        sinks: take its deltas.
    """

    task: Task
    taken: Taken
    sinks: Sinks

    @contextlib.contextmanager
    def base(self, made: Decision) -> Iterator[Chain | None]:
        """The chain that a disk's delta builds on; None: nothing."""
        if made.parent is None:
            yield None
            return
        with self.task.lineage.catalogue.chain(made.parent) as chain:
            yield chain

    def writer(self, head: Header, opening: Opening, base: Chain | None) -> DeltaWriter:
        """Of a disk's delta; its header is written, or was."""
        protection = self.task.store.protection
        under = base or BlankDisk(head.geometry)
        return DeltaWriter(opening.sink, head, under, protection, opening.proven)

    def head(self, made: Decision, size: int, granularity: int | None) -> Header:
        """The header of a disk's delta.

        Args:
            made: how the disk is read.
            size: of the disk.
            granularity: of the bitmaps that say what changed, in bytes; None: none does.
        """
        task, taken, parent = self.task, self.taken, made.parent
        return Header(
            file_id=uuid.uuid4(),
            chain=task.lineage.chain_id,
            guest=task.lineage.guest,
            disk=made.disk.name,
            size=size,
            point=taken.ref,
            parent=None if parent is None else parent.as_parent(),
            mode=made.mode,
            disks=tuple(each.disk.name for each in taken.decisions),
            level=task.options.level,
            granularity=granularity,
            producer={
                "fleece": VERSION,
                "python": platform.python_version(),
                **task.source.producer(),
            },
            algorithm=task.store.algorithm,
            gone=taken.gone,
            identity=task.bond.identity,
        )

    def finish(
        self, decisions: Sequence[Decision], jobs: Sequence[Job], audited: Mapping[str, int]
    ) -> list[DiskResult]:
        """Finish all deltas.

        Args:
            decisions: how the disks were read.
            jobs: of the same disks, done.
            audited: bytes that were compared with the chain, by disk.
        """
        # The point is not needed any more, but the guest fills its scratch until it is closed.
        finish = [job.writer.finish for job in jobs]
        summaries = run_beside(lambda: [each() for each in finish], self.taken.living.watch)
        return [
            self._result(made, job, summary, audited.get(made.disk.name, 0))
            for made, job, summary in zip(decisions, jobs, summaries, strict=True)
        ]

    def _result(self, made: Decision, job: Job, summary: Summary, audited: int) -> DiskResult:
        name = made.disk.name
        return DiskResult(
            disk=name,
            size=job.geometry.size,
            root=summary.root.hex(),
            mode=made.mode,
            dirty_bytes=summary.data_bytes + summary.zero_bytes,
            read_bytes=job.read_bytes,
            stored_bytes=summary.stored_bytes,
            delta=self.sinks.place(name),
            audited_bytes=audited,
            resumed_bytes=job.kept_bytes,
        )


Fill = Callable[[Filling], list[DiskResult]]
"""Reads a point into its deltas, and finishes these: by pull or by push."""


@dataclass(frozen=True)
class _IntoStore:
    """The deltas go into a point of a store.

    Attributes:
        partial: the point, until it is whole.
        resumed: an interrupted backup has begun them.
    """

    partial: PartialPoint
    resumed: bool

    def open(self, disk: str) -> Opening:
        """The file of a disk's delta."""
        if self.resumed:
            return Opening(*self.partial.reopen(disk))
        made = self.partial.create(disk)
        return Opening(made, sync=made.sync)

    def place(self, disk: str) -> str:
        """The file's name."""
        return self.partial.place(disk)


class _IntoStream:
    """The one delta goes to the caller's stream."""

    def __init__(self, output: Sink) -> None:
        self._output = output

    def open(self, disk: str) -> Opening:
        """The stream."""
        return Opening(self)

    def place(self, disk: str) -> str:
        """As the command line writes it."""
        return "-"

    def write(self, data: Buffer) -> int | None:
        """Pass bytes on."""
        try:
            return self._output.write(data)
        except OSError as error:
            raise StoreError(f"the output takes no more ({error.strerror})") from error


def store_point(task: Task, taken: Taken, fill: Fill) -> list[DiskResult]:
    """Store a point. When this returns, it is durable; when it raises, nothing of it is there."""
    ref, left = taken.ref, taken.left
    partial = (
        task.store.begin(task.lineage.guest, ref.id, ref.sequence)
        if left is None
        else task.store.resume(left)
    )
    try:
        results = fill(Filling(task, taken, _IntoStore(partial, left is not None)))
        task.cancel.check()
        run_beside(partial.commit, taken.living.watch)
    except BaseException:
        partial.discard()
        raise
    return results


def stream_point(task: Task, taken: Taken, fill: Fill, output: Sink) -> list[DiskResult]:
    """Write the delta of a point's one disk to a stream, which the caller makes durable."""
    return fill(Filling(task, taken, _IntoStream(output)))
