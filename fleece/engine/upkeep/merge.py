"""Make one delta of a run of deltas, without the guest and without compressing again.

The merged delta is the run's newest in all that it says of the disk: point, root, size. So those
that build on it need no change, and it takes its place in the store by one rename.
"""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap, overlay, steps
from fleece.delta.header import Header, Mode
from fleece.delta.writer import DeltaWriter, Summary
from fleece.engine.work.pool import Counter
from fleece.errors import DeltaError, UsageError
from fleece.extents import Extents
from fleece.store import keeping, rewrite
from fleece.store.backend import NewObject
from fleece.store.catalogue import Entry, StoredPoint
from fleece.store.lines import OpenLines
from fleece.store.store import Store
from fleece.tree import BlankDisk, NodeSource
from fleece.version import VERSION


@dataclass(frozen=True)
class MergedDisk:
    """What became of one disk.

    Attributes:
        disk, root: its name; the root, as it was.
        deltas: how many the new one stands for; 1: there was nothing to do.
        frames, cut: data records that were copied as they are, and that had to be decoded.
        stored_bytes: of the new file.
    """

    disk: str
    root: str
    deltas: int
    frames: int
    cut: int
    stored_bytes: int


@dataclass(frozen=True)
class MergeResult:
    """A point whose deltas stand in for runs."""

    point: str
    guest: str
    disks: tuple[MergedDisk, ...]


def merge(
    store: Store,
    point: str,
    first: str | None = None,
    *,
    guest: str | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> MergeResult:
    """Make a point stand on what an older one stood on, or (a synthetic full) on nothing.

    The points between stay; prune removes what no rule keeps.

    Args:
        store: where the point is.
        point: an id, a prefix of one, or `latest`.
        first: the oldest point whose deltas are merged in; None: all down to the full.
        guest: which guest, if the store holds several.
        listener: hears `Merged` and `Progress`.
        cancel: stops it; disks that are merged stay so.

    Raises:
        UsageError: `first` is the point itself, or is on the line of none of the point's disks, and
            none stands already on what `first` stands on.
        StoreError: a delta is missing or damaged; the store is as it was.
    """
    cancel = cancel or CancelToken()
    guest = store.catalogue().find(point, guest).guest
    with store.locked(guest):
        catalogue = store.catalogue()
        for path in rewrite.tidy(catalogue, guest):
            listener(events.Leftover("unfinished file", path))
        chosen = catalogue.find(point, guest)
        keeping.check_free(catalogue, chosen)
        start = None if first is None else catalogue.find(first, guest)
        if start is not None and start.id == chosen.id:
            raise UsageError(
                f"point {chosen.id} is to be merged from itself: nothing would change",
                hint="name an older point by --from",
            )
        lines = {name: catalogue.line(entry) for name, entry in sorted(chosen.deltas.items())}
        counts = {name: _run_length(line, start) for name, line in lines.items()}
        if start is not None and not any(counts.values()):
            raise UsageError(f"point {chosen.id} does not build on point {start.id}")
        with OpenLines(catalogue) as opened:
            done = [
                merge_disk(opened, line[0], counts[name] or 1, listener, cancel)
                for name, line in lines.items()
            ]
    return MergeResult(chosen.id, guest, tuple(done))


def _run_length(line: Sequence[Entry], start: StoredPoint | None) -> int:
    """How many deltas from the newest down to the run's first; 0: it is not on the line.

    1 if the newest stands on what the run's first stands on: a merge that was killed before it said
    so may have done that, and is given again.
    """
    if start is None:
        return len(line)
    names = [entry.header.point.id for entry in line]
    if start.id in names:
        return names.index(start.id) + 1
    first, newest = start.deltas.get(line[0].header.disk), line[0]
    return int(first is not None and first.header.parent == newest.header.parent)


def merge_disk(
    lines: OpenLines,
    newest: Entry,
    count: int,
    listener: events.Listener,
    cancel: CancelToken,
) -> MergedDisk:
    """Put one delta in an entry's place, that stands for it and the `count - 1` ones below it.

    Args:
        lines: of the store's catalogue; what leads to the entry must still be as that says.
        newest: the entry.
        count: of deltas to merge; with 1 nothing is done.
        listener: hears `Merged` and `Progress`.
        cancel: stops it before it is committed.
    """
    if count < 2:
        return MergedDisk(newest.header.disk, newest.root, 1, 0, 0, newest.stored_bytes)
    new = rewrite.Replacement(newest, lines.catalogue.access)
    try:
        work = _Merge(lines.chain(newest), count, new.sink, listener, cancel)
        summary = work.run()
        if summary.root.hex() != newest.root:
            raise DeltaError(
                f"merging gives root {summary.root.hex()}, the point has {newest.root}",
                where=newest.where,
                hint="'fleece verify' tells which delta is damaged; nothing was changed",
            )
        cancel.check()
        new.commit()
    except BaseException:
        new.discard()
        raise
    done = MergedDisk(
        newest.header.disk, newest.root, count, work.frames, work.cut, summary.stored_bytes
    )
    listener(
        events.Merged(
            newest.header.point.id, done.disk, count, done.frames, done.cut, done.stored_bytes
        )
    )
    return done


def merged_header(newest: Header, oldest: Header, count: int) -> Header:
    """What the merged delta says of itself: the newest's words, on the oldest's parent."""
    return dataclasses.replace(
        newest,
        file_id=uuid.uuid4(),
        parent=oldest.parent,
        mode=Mode.FULL if oldest.parent is None else Mode.INCREMENTAL,
        granularity=None,
        producer={**newest.producer, "merge": f"fleece {VERSION}, of {count} deltas"},
    )


class _Merge:
    """One merged delta while it is written."""

    def __init__(
        self,
        chain: Chain,
        count: int,
        sink: NewObject,
        listener: events.Listener,
        cancel: CancelToken,
    ) -> None:
        self._run = chain.deltas[:count]
        newest, oldest = self._run[0].header, self._run[-1].header
        base: NodeSource = BlankDisk(newest.geometry)
        if oldest.parent is not None:
            base = chain.below(count)
        self._shape = newest.geometry
        head = merged_header(newest, oldest, count)
        self._writer = DeltaWriter(sink, head, base, self._run[0].protection)
        self._unpack = zstandard.ZstdDecompressor()
        self._pack = self._writer.compressor()
        self._subject, self._listener, self._cancel = newest.disk, listener, cancel
        self.frames = 0
        self.cut = 0

    def run(self) -> Summary:
        """Write it all."""
        total = sum(picture.extents(zero=False).total for picture in self._pictures())
        counter = Counter(self._listener, events.Phase.MERGE, self._subject, total)
        for picture in self._pictures():
            for start, end in picture.extents(zero=True):
                self._writer.zero(start, end - start)
            for owner, row, pieces in visible_records(picture):
                self._cancel.check()
                self._record(owner, picture.rows[row].tolist(), pieces)
                counter.add(sum(end - start for start, end in pieces))
        return self._writer.finish()

    def _pictures(self) -> Iterator[ChainMap]:
        for low, high in steps(self._run):
            yield overlay(self._run, Extents.of([(low, high)]))

    def _record(
        self, owner: int, row: tuple[int, int, int, int, int], pieces: list[tuple[int, int]]
    ) -> None:
        delta = self._run[owner]
        found, frame = delta.record_at(*row)
        if pieces == [(found.offset, found.offset + found.length)]:
            self._writer.data(found.offset, found.length, found.leaves, frame)
            self.frames += 1
            return
        data = delta.unpack(found, frame, self._unpack)
        size, width = self._shape.leaf_size, self._shape.algorithm.size
        self.cut += 1
        for start, end in pieces:
            low, high = start - found.offset, end - found.offset
            leaves = found.leaves[low // size * width : -(-high // size) * width]
            self._writer.data(start, end - start, leaves, self._pack.compress(data[low:high]))


def visible_records(picture: ChainMap) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Each data record that is visible anywhere: owner, row and its visible parts.

    In the order of the oldest file's offsets first, so that each file is read forward.
    """
    kept = np.flatnonzero(~picture.zero)
    order = kept[np.lexsort((picture.start[kept], picture.row[kept], -picture.owner[kept]))]
    rows = zip(
        picture.owner[order].tolist(),
        picture.row[order].tolist(),
        picture.start[order].tolist(),
        picture.end[order].tolist(),
        strict=True,
    )
    for (owner, row), parts in itertools.groupby(rows, key=lambda item: item[:2]):
        yield owner, row, [(start, end) for _, _, start, end in parts]
