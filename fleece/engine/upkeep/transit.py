"""Points on their way from one store into another: several deltas at once, seen in their order.

A point is begun when a worker is free for its first delta, and becomes visible when all of its
deltas have arrived and all older points of its guest are in the store: so what it builds on is
there, and its root is proven by that.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.passage import Carried, ReadAhead, carry
from fleece.delta.reader import DeltaReader
from fleece.delta.spool import SpoolError
from fleece.engine.upkeep.copy_plan import GuestPlan
from fleece.engine.work.pool import run_workers
from fleece.errors import FleeceError, StoreError
from fleece.hashing import Buffer
from fleece.store.backend import BeginsAhead, NewObject
from fleece.store.catalogue import Catalogue, Entry, StoredPoint
from fleece.store.lines import OpenLines
from fleece.store.partial_point import PartialPoint
from fleece.store.store import Store
from fleece.tree import BlankDisk

_LOOK = 0.2
"""Seconds between two looks whether the run was given up, while a point is waited for."""


@dataclass
class _Passage:
    """One point on its way.

    Attributes:
        point: in the source.
        partial: in the target.
        left: how many of its deltas have not arrived.
        carried: those that have, by disk.
        error: why it is not copied.
    """

    point: StoredPoint
    partial: PartialPoint
    left: int
    carried: dict[str, Carried] = field(default_factory=dict)
    error: FleeceError | None = None


class _Line:
    """The points of one guest that are on their way, the oldest first."""

    def __init__(self, known: Catalogue, plan: GuestPlan) -> None:
        self.points = plan.points
        self.lock = threading.Lock()
        self.queue: deque[_Passage] = deque()
        self.lines = OpenLines(known)


class _TargetError(Exception):
    """The target failed, not a point: nothing more can be sent."""

    def __init__(self, error: FleeceError) -> None:
        super().__init__(str(error))
        self.error = error


class _Taking:
    """The sink of a target, whose errors are told from those of the source."""

    def __init__(self, sink: NewObject) -> None:
        self._sink = sink

    def write(self, data: Buffer, /) -> int | None:
        with _of_target():
            return self._sink.write(data)


@contextlib.contextmanager
def _of_target() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise _TargetError(error) from error


class Transit:
    """Sends points. The locks of their guests in the target must be held.

    Args:
        source: where they are.
        target: where they go.
        known: what the target has; it learns what arrives.
        listener: hears `Arrived` and `Problem`.
        cancel: stops it; a point is seen whole or not at all.
        took: is called with the number of bytes of file before they are read.

    Attributes:
        arrived: points that are in the target now.
        problems: of points that could not be copied.
        changed: points whose deltas the source replaced or removed meanwhile.
    """

    def __init__(
        self,
        source: Store,
        target: Store,
        known: Catalogue,
        listener: events.Listener,
        cancel: CancelToken,
        took: Callable[[int], None],
    ) -> None:
        self._source, self._target, self._known = source, target, known
        self._listener, self._cancel, self._took = listener, cancel, took
        self._room = threading.Condition()
        self._under_way = 0
        self._given_up = False
        self.arrived: list[StoredPoint] = []
        self.problems: list[FleeceError] = []
        self.changed: list[StoredPoint] = []

    def run(self, plans: Sequence[GuestPlan], workers: int) -> None:
        """Send the points of some guests.

        Raises:
            StoreError: the target failed; what has arrived stays.
        """
        begun = [_Line(self._known, plan) for plan in plans]
        try:
            run_workers(self._jobs(begun, workers), self._work, self._cancel, workers)
        except _TargetError as failed:
            raise failed.error from failed
        finally:
            with contextlib.ExitStack() as end:  # whatever becomes of one, the others go
                for line in begun:
                    end.callback(line.lines.close)
                    for passage in line.queue:
                        end.callback(passage.partial.discard)

    def _jobs(self, lines: Sequence[_Line], most: int) -> Iterator[tuple[_Line, _Passage, Entry]]:
        """Each delta, when there is a worker for it, and no more than `most` points are begun.

        The guests take turns, so that there is work where a guest's points come one by one.
        """
        backend = self._target.backend
        ahead = most if isinstance(backend, BeginsAhead) and backend.begins_ahead else 1
        turns = zip_longest(*(((line, point) for point in line.points) for line in lines))
        for line, point in filter(None, chain.from_iterable(turns)):
            if not self._may_begin(line, most, ahead):
                return
            with _of_target():
                partial = self._target.begin_copy(point.guest, point.id, point.sequence)
            passage = _Passage(point, partial, len(point.deltas))
            passage.error = self._in_the_way(passage)
            line.queue.append(passage)
            for _, entry in sorted(point.deltas.items()):
                yield line, passage, entry

    def _in_the_way(self, passage: _Passage) -> StoreError | None:
        """The error of a damaged file that has the place of one of a point's deltas."""
        places = {passage.partial.key(disk) for disk in passage.point.deltas}
        found = (file.error for file in self._known.damaged if file.key in places)
        return next(found, None)

    def _may_begin(self, line: _Line, most: int, ahead: int) -> bool:
        with self._room:
            while not self._given_up and (self._under_way >= most or len(line.queue) >= ahead):
                self._cancel.check()
                self._room.wait(_LOOK)
            self._under_way += 1
            return not self._given_up

    def _work(self, jobs: Iterator[tuple[_Line, _Passage, Entry]]) -> None:
        try:
            for line, passage, entry in jobs:
                self._send(passage, entry)
                with line.lock:
                    passage.left -= 1
                    while line.queue and not line.queue[0].left:
                        self._end(line, line.queue[0])
                        with self._room:
                            line.queue.popleft()
                            self._under_way -= 1
                            self._room.notify_all()
        except BaseException:
            with self._room:
                self._given_up = True
                self._room.notify_all()
            raise

    def _send(self, passage: _Passage, entry: Entry) -> None:
        if passage.error is not None:
            return
        alike = self._source.protection == self._target.protection
        most = entry.stored_bytes if alike else 2 * entry.stored_bytes  # each frame takes more
        with _of_target():
            sink = passage.partial.create(entry.header.disk, most)
        try:
            blob = ReadAhead(self._source.backend.open(entry.key), self._took)
            with self._source.access.read(blob) as delta:
                if Entry.of(delta, entry.key) != entry:
                    raise StoreError("was replaced", where=entry.where)
                passage.carried[entry.header.disk] = carry(
                    delta, blob, _Taking(sink), self._target.protection
                )
        except SpoolError:
            raise
        except StoreError as error:
            passage.error = error

    def _end(self, line: _Line, passage: _Passage) -> None:
        """Let a point be seen whose deltas have all arrived, or tell why it is not copied."""
        point = passage.point
        learnt: list[Entry] = []

        def check(arrived: DeltaReader) -> None:
            disk = arrived.header.disk
            try:
                learnt.append(self._checked(line, passage, disk, arrived))
            except SpoolError:
                raise
            except StoreError as error:
                passage.error = StoreError(
                    f"does not fit what it arrived at ({error})",
                    where=point.deltas[disk].where,
                    hint="'fleece verify' both stores",
                )
                raise

        if passage.error is None:
            try:
                passage.partial.commit(check, self._known)
            except StoreError as error:
                if passage.error is None:
                    raise _TargetError(error) from error
        if passage.error is None:
            for entry in learnt:
                self._known.learn(entry)
            self.arrived.append(point)
            size = sum(entry.stored_bytes for entry in point.deltas.values())
            self._listener(events.Arrived(point.guest, point.id, size))
        else:
            passage.partial.discard()
            self._tell(point, passage.error)

    def _checked(self, line: _Line, passage: _Passage, disk: str, arrived: DeltaReader) -> Entry:
        """The delta as it is known from now on, after the root was proven by what it builds on."""
        entry = Entry.of(arrived, passage.partial.key(disk))
        self._known.check_line(entry)
        parent = self._known.parent(entry)
        if parent is None:
            passage.carried[disk].check(arrived, BlankDisk(arrived.geometry))
        else:
            below = line.lines.chain(parent)
            below.on(arrived)
            passage.carried[disk].check(arrived, below)
        return entry

    def _tell(self, point: StoredPoint, error: FleeceError) -> None:
        if not all(self._stays(entry) for entry in point.deltas.values()):
            self.changed.append(point)
            return
        self.problems.append(error)
        self._listener(events.Problem(error.where or self._source.where, error.what))

    def _stays(self, entry: Entry) -> bool:
        """Whether a delta of the source is still the one of the plan, if be it damaged."""
        try:
            return self._source.access.read_entry(entry.key) == entry
        except StoreError:
            return self._source.backend.has(entry.key)
