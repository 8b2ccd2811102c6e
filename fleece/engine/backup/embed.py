"""For programs that embed fleece: list an export's extents, or write its delta to any stream."""

from __future__ import annotations

from collections.abc import Iterator

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.header import Header
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.disk.base import ReadableDisk
from fleece.engine.backup.pull import CopyJob, copy_all, dirty_leaves, open_dirty, open_export
from fleece.engine.backup.shrunk import cut_at
from fleece.engine.work.pool import Counter, run_beside
from fleece.errors import PointError
from fleece.extents import Extents
from fleece.source.base import Export, Point
from fleece.source.lost import reads_of
from fleece.tree import BlankDisk


def dirty_extents(export: Export) -> Iterator[tuple[int, int, bool]]:
    """What changed on an export's disk since its parent.

    Returns:
        (start, end, zero) in bytes of disk, by ascending start, in whole leaves; `zero`: it is
        known, without reading, to be zeros.
    """
    disk, dirty = open_dirty(export)
    zeros = disk.zero_extents(dirty)
    parts = [(start, end, True) for start, end in zeros]
    parts += [(start, end, False) for start, end in dirty.subtract(zeros)]
    yield from sorted(parts)


def write_delta(
    point: Point,
    export: Export,
    head: Header,
    sink: Sink,
    parent: Chain | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Summary:
    """Read an export and write its delta, front to back, to a binary stream.

    The point is watched over meanwhile, and must live when the last byte was read. The caller makes
    the stream durable.

    Args:
        point: living.
        export: one of its disks.
        head: the delta's header, which must fit the export and the parent.
        sink: where the bytes go.
        parent: the chain of the header's parent; None: a full.
        listener: hears `Progress`.
        cancel: stops it; the stream then holds a partial delta.

    Raises:
        PointError: the point was lost, or had to be given up for the guest's sake; or the disk is
            not what the parent was, in a part that is said to be unchanged.
    """
    cancel = cancel or CancelToken()
    disk = open_export(export, cancel=cancel)
    with reads_of(point):
        dirty = dirty_leaves(export, disk)
        if parent is not None and not export.partial:
            _check_uncut(parent, export, disk, dirty)
        writer = DeltaWriter(sink, head, parent or BlankDisk(head.geometry))
        job = CopyJob(disk, dirty, writer)
        counter = Counter(listener, events.Phase.BACKUP, export.disk, dirty.total)
        copy_all([job], counter, cancel, watch=point.watch)
    point.check()
    return run_beside(writer.finish, point.watch)


def _check_uncut(parent: Chain, export: Export, disk: ReadableDisk, dirty: Extents) -> None:
    place = cut_at(parent, disk, dirty)
    if place is not None:
        raise PointError(
            f"disk {export.disk} was shrunk and grown back, or written behind the source's back: "
            f"byte {place} is called unchanged, but is not what the parent holds",
            where=export.uri,
            hint="read all of it: a point without bitmaps",
        )
