"""Store bytes of a disk in its delta: hash the leaves, tell zeros apart, compress, append."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

from fleece.delta.layout import MAX_RECORD
from fleece.delta.writer import DeltaWriter
from fleece.engine.backup.unchanged import changed_runs
from fleece.engine.work.leaves import LeafHasher, Run
from fleece.hashing import Buffer
from fleece.tree import Geometry, HashArray


class Packer:
    """One thread's tools for one disk.

    Args:
        writer: of the disk's delta.
        geometry: of its tree.
        level: zstd level.
        stored: is told each range of data, in bytes of disk, that was appended.
    """

    def __init__(
        self,
        writer: DeltaWriter,
        geometry: Geometry,
        level: int,
        stored: Callable[[int, int], None] | None = None,
    ) -> None:
        self._writer = writer
        self._stored = stored
        self._geometry = geometry
        self._hasher = LeafHasher(geometry)
        self._compressor = zstandard.ZstdCompressor(
            level=level, write_checksum=True, write_content_size=True
        )

    def store(self, offset: int, data: Buffer, held: HashArray | None = None) -> None:
        """Store whole leaves.

        Args:
            offset: of the disk, at a leaf.
            data: up to a leaf's or the disk's end; cut into records at each `MAX_RECORD` of the
                disk.
            held: the chain's hashes of the same leaves: those that are the same are not stored.
        """
        view, at = memoryview(data), 0
        while at < len(view):
            end = min(len(view), at + MAX_RECORD - (offset + at) % MAX_RECORD)
            same = None if held is None else held[at // self._geometry.leaf_size :]
            self._store(offset + at, view[at:end], same)
            at = end

    def _store(self, offset: int, view: memoryview, held: HashArray | None) -> None:
        for run in self._wanted(offset, self._hasher.runs(offset, view), held):
            if run.hashes is None:
                self._writer.zero(run.offset, run.length)
            else:
                at = run.offset - offset
                frame = self._compressor.compress(view[at : at + run.length])
                self._writer.data(run.offset, run.length, run.hashes, frame)
                if self._stored is not None:
                    self._stored(run.offset, run.offset + run.length)

    def _wanted(self, offset: int, runs: Iterator[Run], held: HashArray | None) -> Iterator[Run]:
        if held is None:
            yield from runs
            return
        size = self._geometry.leaf_size
        for run in runs:
            first = (run.offset - offset) // size
            count = -(-run.length // size)
            same = held[first : first + count]
            yield from changed_runs(run, same, size, self._geometry.zeros[0])
