"""Take what a source pushes of a point into deltas."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fleece.cancel import CancelToken
from fleece.delta.writer import DeltaWriter, Packer
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.engine.work.pool import TELL_EVERY, Counter, run_workers
from fleece.errors import PointError
from fleece.extents import Extents, Gathering
from fleece.nbd.handover import Channel, Request
from fleece.nbd.sink import NbdSink
from fleece.source.base import PushFeed

_PATIENCE = 10.0
"""Seconds that the store may take for one request. QEMU waits for requests in flight whenever it
drains the disk, and the guest with it; a backup is given up first."""

_LAST_WORDS = 0.5
"""Seconds until a sink that is killed has ended, and the failure of QEMU's jobs is known for what
it is."""


@dataclass
class PushJob:
    """One disk that is pushed.

    Attributes:
        name: of the disk.
        writer: its delta.
        held: what the chain holds already and need not be stored again; None: store all.
        received: what has come, in bytes of disk.
        zeros: the part of it that came as zeros.
        read_bytes: that came as data.
    """

    name: str
    writer: DeltaWriter
    held: HeldLeaves | None = None
    received: Gathering = field(default_factory=Gathering)
    zeros: Gathering = field(default_factory=Gathering)
    read_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kept_bytes(self) -> int:
        """None: a push is not resumed."""
        return 0

    def take(self, request: Request, data: memoryview | None, packer: Packer) -> None:
        """Store one request's bytes; None: they are zeros.

        Raises:
            PointError: it is not of whole leaves.
        """
        start, end = request.offset, request.offset + request.length
        size, leaf = self.writer.geometry.size, self.writer.geometry.leaf_size
        if start % leaf or (end % leaf and end != size) or end > size:
            raise PointError(
                f"the source pushed a part of a leaf of disk {self.name}: {start} to {end}"
            )
        if data is not None:
            self._store(start, data, packer)
        with self._lock:
            self.received.add(start, end)
            if data is None:
                self.zeros.add(start, end)
            else:
                self.read_bytes += end - start

    def _store(self, start: int, data: memoryview, packer: Packer) -> None:
        """Store bytes: those that the chain may hold already, then the others."""
        if self.held is None:
            packer.store(start, data)
            return
        known = min(len(data), max(self.held.end - start, 0))
        if known:
            with self._lock:
                held = self.held.hashes(start, start + known)
            packer.store(start, data[:known], held)
        packer.store(start + known, data[known:])

    def end(self) -> Extents:
        """All has come: store the zeros; gives what came.

        Raises:
            PointError: something came twice.
        """
        received = self.received.extents()
        if received.total != self.received.total:
            raise PointError(f"the source pushed a part of disk {self.name} twice")
        zeros = self.zeros.extents()
        for start, end in zeros if self.held is None else self.held.not_yet_zero(zeros):
            self.writer.zero(start, end - start)
        return received


def push_all(
    jobs: Sequence[PushJob],
    push: PushFeed,
    counter: Callable[[int], Counter],
    cancel: CancelToken,
    workers: int,
    watch: Callable[[], None],
) -> None:
    """Have the source push all disks of a point, and store what comes: no leaf more, and none less.

    Args:
        jobs: the disks, in the point's order.
        push: the point's jobs.
        counter: makes what counts bytes of disk, given how many will come.
        cancel: stops it.
        workers: threads that hash, compress and append.
        watch: `Point.watch`, called all the while.

    Raises:
        PointError: the source failed, or what came is not what had to come.
        StoreError: a delta takes no more.
    """
    dirty = push.dirty_bytes()
    sizes = [job.writer.geometry.size for job in jobs]
    total = sum(size if known is None else known for size, known in zip(sizes, dirty, strict=True))
    with contextlib.closing(NbdSink(push.socket, sizes, workers)) as sink:
        push.end_sink = sink.end
        sink.wait(cancel)
        _Receiver(jobs, push, sink, counter(total), cancel, watch).run()
        push.end()
    for number, job in enumerate(jobs):
        push.check_received(number, job.end(), job.writer.geometry.size)


class _Receiver:
    """Serves the sink's channels, and has the source push, until it is done.

    Three kinds of threads: one for each channel, which waits for nobody but the store; one that
    tells the listener, who may take his time; and the calling one, which alone talks to QEMU. What
    QEMU waits for while it drains its disks, and the guest with it, are the channels: they are
    served before the first job can write, and whatever the others do.
    """

    def __init__(
        self,
        jobs: Sequence[PushJob],
        push: PushFeed,
        sink: NbdSink,
        counter: Counter,
        cancel: CancelToken,
        watch: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._push = push
        self._sink = sink
        self._counter = counter
        self._cancel = cancel
        self._watch = watch
        self._started = False
        self._done = False
        self._failed = False
        self._ended = threading.Event()
        self._since: dict[Channel, float] = {}

    def run(self) -> None:
        """Return when all jobs have ended well and all that came is stored."""
        served = [functools.partial(self._serve, channel) for channel in self._sink.channels]
        tasks: list[Callable[[], None]] = [*served, self._tell]
        run_workers(tasks, self._work, self._cancel, len(tasks), self._look, self._give_up)
        if not self._done:
            self._sink.check()
            self._push.done()
            raise PointError("the sink of the push is gone")

    def _work(self, tasks: Iterator[Callable[[], None]]) -> None:
        try:
            for task in tasks:
                task()
        except BaseException:
            # The others wait for requests. This is the error to tell, not that of the job, which
            # fails of it.
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._failed = True
        self._ended.set()
        self._sink.shut()

    def _tell(self) -> None:
        while not self._ended.wait(TELL_EVERY):
            self._counter.tell()
        if self._done:
            self._counter.tell()

    def _serve(self, channel: Channel) -> None:
        packers = [Packer(job.writer) for job in self._jobs]
        for request in channel.requests():
            self._since[channel] = time.monotonic()
            data = None if request.zero else channel.data(request)
            if request.disk >= len(self._jobs) or (data is not None and len(data) < request.length):
                raise PointError(
                    "the sink handed over something that the source cannot have pushed"
                )
            self._jobs[request.disk].take(request, data, packers[request.disk])
            self._counter.count(request.length, request.length if request.zero else 0)
            channel.answer(True)
            del self._since[channel]

    def _is_done(self) -> bool:
        try:
            self._sink.check()
            return self._push.done()
        except PointError:
            if self._failed:  # meanwhile, and this is what came of it
                return False
            self._sink.check(_LAST_WORDS)  # of a sink that is gone the jobs only say that they fail
            raise

    def _look(self) -> None:
        """Watch over all that can end it. Called in the thread that may talk to QEMU."""
        self._watch()
        if self._failed or self._done:
            return
        self._cancel.check()
        if not self._started:
            self._push.start()
            self._started = True
        if self._is_done():
            self._done = True
            self._ended.set()
            self._sink.shut()
        waited = time.monotonic() - min([*self._since.values()], default=time.monotonic())
        if waited > _PATIENCE:
            raise PointError(
                f"the store took nothing for {_PATIENCE:.0f} s; the backup was given up, because "
                "the guest may have to wait for it"
            )
