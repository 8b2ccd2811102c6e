"""Copy the dirty leaves of open exports into deltas."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fleece.cancel import CancelToken
from fleece.delta.writer import DeltaWriter, Packer
from fleece.disk.base import ReadableDisk, Reader
from fleece.disk.nbd import NbdDisk
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.engine.work.pool import WORKERS, Counter, run_workers
from fleece.engine.work.reads import WINDOW, OneReader, ReadItem, known_zeros, read_items
from fleece.errors import PointError
from fleece.extents import Extents
from fleece.pace import Pace
from fleece.source.base import Export
from fleece.tree import LEAF_SIZE, HashArray


@dataclass
class CopyJob:
    """One disk to copy.

    Attributes:
        disk: where its bytes are read.
        dirty: whole leaves to store, in bytes of disk.
        writer: its delta.
        held: what the chain holds already and need not be stored again; None: store all of
            `dirty`.
        kept: what the writer held before; not in `dirty`.
        stored: told each range, (start, end) in bytes of disk, when the writer has its data.
        read_bytes: bytes read so far.
    """

    disk: ReadableDisk
    dirty: Extents
    writer: DeltaWriter
    held: HeldLeaves | None = None
    kept: Extents = field(default_factory=Extents.empty)
    stored: Callable[[int, int], None] | None = None
    read_bytes: int = field(default=0)

    @property
    def kept_bytes(self) -> int:
        """Bytes of disk that need not be read again."""
        return self.kept.total

    def parts(self) -> Iterator[tuple[Extents, HeldLeaves | None]]:
        """What is dirty: where the chain may hold it already, and where not."""
        if self.held is None:
            yield self.dirty, None
            return
        size = self.writer.geometry.size
        yield self.dirty.clip(0, self.held.end), self.held
        yield self.dirty.clip(self.held.end, size), None


def open_export(
    export: Export, pace: Pace | None = None, cancel: CancelToken | None = None
) -> NbdDisk:
    """The export as a disk, whose reads keep a pace and end when the run is interrupted.

    Raises:
        PointError: its size is not what the source said.
    """
    disk = NbdDisk(export.uri, unit=export.unit, pace=pace, cancel=cancel)
    if disk.size != export.size:
        raise PointError(
            f"disk {export.disk} has {disk.size} bytes in the export and "
            f"{export.size} in the source: it was resized",
            where=export.uri,
        )
    return disk


def dirty_leaves(export: Export, disk: NbdDisk, more: Extents | None = None) -> Extents:
    """The whole leaves that a delta of this export must hold.

    Args:
        export: says what, or by which meta contexts, or that all is dirty.
        disk: the export, open.
        more: ranges that count as dirty too.

    Raises:
        PointError: the export lacks a dirty context.
    """
    contexts = [export.dirty_context, *export.also_dirty] if export.dirty_context else []
    if export.changed is None and not contexts:
        return Extents.whole(disk.size)
    dirty = (more or Extents.empty()).union(export.changed or Extents.empty())
    for context in contexts:
        found = disk.dirty_extents(context, Extents.whole(disk.size))
        if found is None:
            raise PointError(f"the export has no meta context {context}", where=export.uri)
        dirty = dirty.union(found)
    return dirty.align_out(LEAF_SIZE, disk.size)


def open_dirty(
    export: Export,
    more: Extents | None = None,
    pace: Pace | None = None,
    cancel: CancelToken | None = None,
) -> tuple[NbdDisk, Extents]:
    """`open_export`, and its `dirty_leaves`."""
    disk = open_export(export, pace, cancel)
    return disk, dirty_leaves(export, disk, more)


def copy_all(
    jobs: Sequence[CopyJob],
    counter: Counter,
    cancel: CancelToken,
    workers: int = WORKERS,
    watch: Callable[[], None] | None = None,
) -> None:
    """Read, hash, compress and append all jobs' dirty leaves, by one pool of workers.

    Args:
        jobs: the disks.
        counter: counts bytes of disk.
        cancel: stops it.
        workers: threads.
        watch: `Point.watch`, called all the while.
    """

    def work(shared: Iterator[_Item]) -> None:
        with contextlib.closing(OneReader()) as one:
            copier: _Copier | None = None
            for job, item, held in shared:
                if copier is None or copier.job is not job:
                    copier = _Copier(job, one.of(job.disk))
                counter.add(copier.copy(item, held))

    items = itertools.chain.from_iterable(_items(job, counter) for job in jobs)
    run_workers(items, work, cancel, workers, watch)


_Item = tuple[CopyJob, ReadItem, HashArray | None]
"""A read of a job, and the chain's hashes of its leaves, if they count."""


def _items(job: CopyJob, counter: Counter) -> Iterator[_Item]:
    """What is to be read of a disk; what is known to be zeros is stored without."""
    for dirty, held in job.parts():
        for part in dirty.windows(WINDOW):
            zeros = known_zeros(job.disk, part, job.writer.geometry.leaf_size)
            for start, end in zeros if held is None else held.not_yet_zero(zeros):
                job.writer.zero(start, end - start)
            counter.skip(zeros.total)
            items = read_items(part.subtract(zeros))
            for item, same in _unknown(items) if held is None else held.beside(items):
                job.read_bytes += item.length
                yield job, item, same


def _unknown(items: Iterator[ReadItem]) -> Iterator[tuple[ReadItem, None]]:
    return ((item, None) for item in items)


class _Copier:
    """One worker's tools for one disk: a connection and a packer."""

    def __init__(self, job: CopyJob, reader: Reader) -> None:
        self.job = job
        self._reader = reader
        self._leaf_size = job.writer.geometry.leaf_size
        self._packer = Packer(job.writer, job.stored)

    def copy(self, item: ReadItem, held: HashArray | None) -> int:
        """Store what is wanted of one read; gives how many bytes of disk that was.

        Args:
            item: what to read.
            held: the chain's hashes of the read's leaves: those that are the same are not stored.
        """
        data = memoryview(self._reader.read(item.start, item.length))
        stored = 0
        for start, end in item.wanted:
            part = data[start - item.start : end - item.start]
            same = None if held is None else held[(start - item.start) // self._leaf_size :]
            self._packer.store(start, part, same)
            stored += end - start
        return stored
