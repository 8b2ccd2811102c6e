"""Where a point goes: into a store, all of it or nothing, or one disk of it into a stream."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.delta.sink import Sink
from fleece.engine.backup.filling import Fill, Filling, Opening
from fleece.engine.backup.options import DiskResult
from fleece.engine.backup.parts import store_parts
from fleece.engine.backup.take import Taken
from fleece.engine.backup.task import Task
from fleece.engine.work.pool import run_beside
from fleece.errors import StoreError
from fleece.hashing import Buffer
from fleece.store.partial_point import PartialPoint


def _stored(most: int) -> int:
    """Bytes that a delta of so many bytes of disk has at most, or not many more.

    Frames, hashes and the tree take up to some hundredths, if nothing can be compressed.
    """
    return most + most // 16 + (1 << 20)


@dataclass(frozen=True)
class _IntoStore:
    """The deltas go into a point of a store.

    Attributes:
        partial: the point, until it is whole.
        resumed: an interrupted backup has begun them.
    """

    partial: PartialPoint
    resumed: bool

    def open(self, disk: str, most: int) -> Opening:
        """The file of a disk's delta."""
        if self.resumed:
            return Opening(*self.partial.reopen(disk))
        made = self.partial.create(disk, _stored(most))
        return Opening(made, sync=made.sync)

    def place(self, disk: str) -> str:
        """The file's name."""
        return self.partial.place(disk)


class _IntoStream:
    """The one delta goes to the caller's stream."""

    def __init__(self, output: Sink) -> None:
        self._output = output

    def open(self, disk: str, most: int) -> Opening:
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
    filling = Filling(task, taken, _IntoStore(partial, left is not None))
    try:
        if left is None:
            store_parts(filling, partial)
        else:
            partial.keep(taken.part_names)
        results = fill(filling)
        task.cancel.check()
        commit = partial.commit
        run_beside(lambda: commit(known=task.lineage.catalogue), taken.living.watch)
    except BaseException:
        partial.discard()
        raise
    return results


def stream_point(task: Task, taken: Taken, fill: Fill, output: Sink) -> list[DiskResult]:
    """Write the delta of a point's one disk to a stream, which the caller makes durable."""
    return fill(Filling(task, taken, _IntoStream(output)))
