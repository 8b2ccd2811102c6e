"""A living point on its way into a store or a stream: the work on each disk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, PointRef
from fleece.delta.partial import Proven
from fleece.delta.protection import Protection
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.disk.nbd import NbdDisk
from fleece.engine.backup.decide import Decision
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.pull import CopyJob, dirty_leaves, open_export
from fleece.engine.backup.push import PushJob
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.errors import PointError, StoreError
from fleece.extents import Extents
from fleece.hashing import Buffer
from fleece.pace import Pace
from fleece.source.base import Export, Point
from fleece.store.partial_point import UnfinishedPoint
from fleece.tree import BlankDisk


@dataclass(frozen=True)
class Taken:
    """A living point.

    Attributes:
        ref: its name.
        decisions: one for each disk.
        living: the point in the source.
        left: what an interrupted backup has stored of it already; None: it is new.
        gone: disks of points before that the guest has no more.
    """

    ref: PointRef
    decisions: tuple[Decision, ...]
    living: Point
    left: UnfinishedPoint | None = None
    gone: tuple[str, ...] = ()


class Stream:
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


@dataclass(frozen=True)
class Opened:
    """One disk of a point, open to be read.

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

    def to_be_rescanned(self, reason: str) -> Opened:
        """The same disk, of which no bitmap is believed."""
        made = dataclasses.replace(
            self.made, mode=Mode.RESCAN, reason=reason, since=None, more_dirty=None
        )
        whole = Extents.whole(self.disk.size)
        return dataclasses.replace(self, made=made, dirty=whole, granularity=None)


def open_disk(
    made: Decision,
    export: Export,
    base: Chain | None,
    pace: Pace | None = None,
    cancel: CancelToken | None = None,
) -> Opened:
    """Open an export and list what is dirty."""
    disk = open_export(export, pace, cancel)
    dirty = dirty_leaves(export, disk, made.more_dirty)
    return Opened(made, disk, dirty, export.granularity, base)


def copy_job(
    opened: Opened,
    head: Header,
    sink: Sink,
    protection: Protection | None,
    proven: Proven | None = None,
) -> CopyJob:
    """The work on one disk, less what an interrupted backup is proven to have done of it.

    Raises:
        PointError: what that did is not part of the work.
    """
    base = opened.base
    done = Extents.empty() if proven is None else proven.extents()
    if len(done.subtract(opened.dirty)):
        raise PointError(
            "an interrupted backup stored parts that did not change",
            where=head.disk,
            hint="run the backup again",
        )
    writer = DeltaWriter(sink, head, base or BlankDisk(head.geometry), protection, proven)
    rescan = base is not None and opened.made.mode is Mode.RESCAN
    held = HeldLeaves(base, head.covers_from) if base is not None and rescan else None
    dirty = opened.dirty.subtract(done)
    return CopyJob(opened.disk, dirty, writer, head.geometry, head.level, held, done)


def push_job(
    made: Decision, head: Header, sink: Sink, base: Chain | None, protection: Protection | None
) -> PushJob:
    """The work on one disk that is pushed."""
    writer = DeltaWriter(sink, head, base or BlankDisk(head.geometry), protection)
    all_comes = base is not None and made.since is None
    held = HeldLeaves(base, head.covers_from) if base is not None and all_comes else None
    return PushJob(made.disk.name, writer, head.geometry, head.level, held)


def disk_result(
    made: Decision, job: CopyJob | PushJob, summary: Summary, path: str, audited: int
) -> DiskResult:
    """What became of one disk."""
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
        resumed_bytes=job.kept_bytes,
    )
