"""For programs that embed fleece: list an export's extents, or write its delta to any stream."""

from __future__ import annotations

from collections.abc import Iterator

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.header import Header
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.engine.copy import CopyJob, copy_all, dirty_leaves, open_export
from fleece.engine.pool import WORKERS, Counter
from fleece.source.base import Export
from fleece.tree import BlankDisk, NodeSource


def dirty_extents(export: Export) -> Iterator[tuple[int, int, bool]]:
    """What changed on an export's disk since its parent.

    Returns:
        (start, end, zero) in bytes of disk, by ascending start, in whole leaves; `zero`: it is
        known, without reading, to be zeros.
    """
    disk = open_export(export)
    dirty = dirty_leaves(export, disk)
    zeros = disk.zero_extents(dirty)
    parts = [(start, end, True) for start, end in zeros]
    parts += [(start, end, False) for start, end in dirty.subtract(zeros)]
    yield from sorted(parts)


def write_delta(
    export: Export,
    head: Header,
    sink: Sink,
    parent: NodeSource | None = None,
    *,
    workers: int = WORKERS,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Summary:
    """Read an export and write its delta, front to back, to a binary stream.

    The caller makes the stream durable, and checks that the point still lives (`Point.check`)
    before it believes the delta.

    Args:
        export: of a living point.
        head: the delta's header, which must fit the export and the parent.
        sink: where the bytes go.
        parent: the chain of the header's parent; None: a full.
        workers: threads.
        listener: hears `Progress`.
        cancel: stops it; the stream then holds a partial delta.
    """
    disk = open_export(export)
    dirty = dirty_leaves(export, disk)
    writer = DeltaWriter(sink, head, parent or BlankDisk(head.geometry))
    job = CopyJob(disk, dirty, writer, head.geometry, head.level)
    counter = Counter(listener, events.Phase.BACKUP, export.disk, dirty.total)
    copy_all([job], counter, cancel or CancelToken(), workers)
    return writer.finish()
