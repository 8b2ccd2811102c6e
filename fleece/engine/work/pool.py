"""A pool of identical workers that take work from one shared iterator.

The shape that measured best: each worker has its own connection and its own compressor, and does
reading, hashing and compression in one thread (docs/internals/architecture.rst, "Workers").
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import numpy as np

from fleece.cancel import CancelToken
from fleece.errors import FleeceError
from fleece.events import Listener, Phase, Progress
from fleece.extents import Flags

WORKERS = 4
"""More gain little on two cores, and cost where records are short (docs/benchmarks.rst)."""

WATCH_EVERY = 0.05
"""Seconds between two looks at what the work depends on."""

_BATCH = 64

T = TypeVar("T")

TELL_EVERY = 0.1
"""Seconds between two reports of progress, at least."""


class _Shared(Generic[T]):
    """An iterator that many threads share; ends for all of them when one failed."""

    def __init__(self, items: Iterable[T], cancel: CancelToken) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._cancel = cancel
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            if self.error is not None:
                raise StopIteration
            self._cancel.check()
            return next(self._items)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error

    def give_up(self, error: BaseException, known: BaseException | None) -> None:
        """End the work for a reason that made others fail: this is the one to tell.

        Args:
            error: the reason.
            known: the error that was known when it came up; if there is one, it stays.
        """
        with self._lock:
            self.error = known or error


def run_workers(
    items: Iterable[T],
    work: Callable[[Iterator[T]], None],
    cancel: CancelToken,
    count: int = WORKERS,
    watch: Callable[[], None] | None = None,
    stop: Callable[[], None] | None = None,
) -> None:
    """Run `work` in `count` threads over shared items until they are used up.

    The iterable itself runs under a lock, in whichever thread asks next. However it ends, no thread
    is left.

    Args:
        items: to share out.
        work: one worker, from its first item to its last.
        cancel: ends the items.
        count: of threads.
        watch: called in the calling thread every `WATCH_EVERY` seconds until the last worker has
            ended, after a failure too: what it watches over is still there. Its error ends the
            work.
        stop: called in the calling thread after a failure, again and again: ends what workers wait
            for.

    Raises:
        The first error of any worker, of the iterable or of `watch`; the other workers end at
        their next item.
    """
    shared = _Shared(items, cancel)

    def guarded(end: threading.Event) -> None:
        try:
            work(shared)
        except BaseException as error:
            shared.fail(error)
        finally:
            end.set()

    ends = [threading.Event() for _ in range(count)]
    threads = [
        threading.Thread(target=guarded, args=(end,), name=f"fleece-{number}")
        for number, end in enumerate(ends)
    ]
    try:
        for thread in threads:
            thread.start()
    except BaseException as error:
        shared.fail(error)
    for thread, end in zip(threads, ends, strict=True):
        if thread.ident is not None:
            _wait_for(end, shared, watch, stop)
    if shared.error is not None:
        raise shared.error


def _wait_for(
    end: threading.Event,
    shared: _Shared[T],
    watch: Callable[[], None] | None,
    stop: Callable[[], None] | None,
) -> None:
    # Not by `Thread.join`: a KeyboardInterrupt in it makes Python 3.11 take the thread for ended.
    while not end.is_set():
        known = shared.error
        try:
            end.wait(WATCH_EVERY)
            if known is not None and stop is not None:
                stop()
            if watch is not None:
                watch()
        except BaseException as error:  # KeyboardInterrupt too: no worker outlives the call
            shared.give_up(error, known)


def run_beside(work: Callable[[], T], watch: Callable[[], None]) -> T:
    """Run work that does not need what is watched, in a thread of its own, and watch meanwhile.

    An error of `watch` ends the watching alone: what it had to do, it has done.
    """
    with ThreadPoolExecutor(1, "fleece-beside") as pool:
        future = pool.submit(work)
        watching = True
        while not wait([future], WATCH_EVERY).done:
            try:
                if watching:
                    watch()
            except FleeceError:
                watching = False
        return future.result()


def spread(short: Flags) -> list[list[int]]:
    """The numbers of things to do, each once, in batches for one worker each.

    Workers that do many short things at the same time wait for the interpreter's lock and gain
    nothing (docs/internals/decisions/0012-figures.rst).

    Args:
        short: bool[n]: which ones are.

    Returns:
        Up to `_BATCH` short ones each, or one that is not; both kinds evenly spread, in order.
    """
    numbers = np.flatnonzero(short).tolist()
    kinds = (
        [numbers[at : at + _BATCH] for at in range(0, len(numbers), _BATCH)],
        [[number] for number in np.flatnonzero(~short).tolist()],
    )
    placed = [
        ((at + 0.5) / len(batches), batch) for batches in kinds for at, batch in enumerate(batches)
    ]
    return [batch for _, batch in sorted(placed)]


class Counter:
    """Counts bytes from many threads and tells a listener, at most ten times a second."""

    def __init__(self, listener: Listener, phase: Phase, subject: str, total: int) -> None:
        self._listener = listener
        self._phase = phase
        self._subject = subject
        self._total = total
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._told = 0.0
        self._said = -1
        self.done = self._known = 0

    def add(self, count: int) -> None:
        """Count `count` bytes more, and tell."""
        self.count(count)
        self.tell()

    def count(self, count: int, known: int = 0) -> None:
        """Count `count` bytes more, of which `known` were not read, whatever the listener does."""
        with self._lock:
            self.done += count
            self._known += known

    def skip(self, count: int) -> None:
        """Count `count` bytes more that need not be read, and tell."""
        self.count(count, count)
        self.tell()

    def tell(self) -> None:
        """Tell the listener, if it is time and there is news; the caller waits for it."""
        with self._telling:
            with self._lock:
                done, known = self.done, self._known
            now = time.monotonic()
            if done != self._said and (now - self._told >= TELL_EVERY or done >= self._total):
                self._told, self._said = now, done
                self._listener(Progress(self._phase, self._subject, done, self._total, known))
