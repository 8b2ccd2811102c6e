"""A living point on its way into a store, or into a stream, whether it is pulled or pushed."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, ParentRef
from fleece.delta.part import Part
from fleece.delta.partial import Proven
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.engine.backup.decide import Decision
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.take import Taken
from fleece.engine.backup.task import Task
from fleece.engine.work.pool import run_beside
from fleece.store.catalogue import Entry
from fleece.tree import BlankDisk
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

    def open(self, disk: str, most: int) -> Opening:
        """Begin a disk's delta, or resume it.

        Args:
            disk: its name.
            most: bytes of disk that are stored at most.
        """

    def place(self, disk: str) -> str:
        """Where it will be, for messages."""


class Job(Protocol):
    """The work on one disk, when it is done."""

    @property
    def writer(self) -> DeltaWriter:
        """Its delta, not finished yet."""

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
    def chain(self, parent: Entry | None) -> Iterator[Chain | None]:
        """The chain that leads to a delta, open; None: to none."""
        if parent is None:
            yield None
            return
        with self.task.lineage.catalogue.chain(parent) as chain:
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
        parent = None if made.parent is None else made.parent.as_parent()
        head = self._head(made.disk.name, size, parent, made.mode)
        return dataclasses.replace(head, granularity=granularity)

    def part_head(self, part: Part, base: Chain | None) -> Header:
        """The header of the delta of a part of the machine, on a chain."""
        parent, mode = None, Mode.FULL
        if base is not None:
            below = base.deltas[0].header
            parent = ParentRef(below.point.id, base.root.hex(), below.size)
            mode = Mode.RESCAN
        head = self._head(part.name, len(part.data), parent, mode)
        return dataclasses.replace(head, part=part.kind)

    def _head(self, name: str, size: int, parent: ParentRef | None, mode: Mode) -> Header:
        task, taken = self.task, self.taken
        return Header(
            file_id=uuid.uuid4(),
            chain=task.lineage.chain_id,
            guest=task.lineage.guest,
            disk=name,
            size=size,
            point=taken.ref,
            parent=parent,
            mode=mode,
            disks=tuple(each.disk.name for each in taken.decisions),
            level=task.options.level,
            granularity=None,
            producer={
                "fleece": VERSION,
                "python": platform.python_version(),
                **task.source.producer(),
            },
            algorithm=task.store.algorithm,
            gone=taken.gone,
            identity=task.bond.identity,
            parts=taken.part_names,
            tags=task.options.tags,
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
            size=job.writer.geometry.size,
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
