"""Files that are open for reading, of which a process keeps only so many open at once.

A chain may have more deltas than a process may have open files. So those that were not read for
longest are closed, and opened again when they are needed: then it must still be the same file.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable

_SHARE = 2
"""Of the files that the system allows, the pool takes the part `1 / _SHARE`."""

_MOST = 4096
_FEWEST = 4


class Replaced(Exception):
    """A file that was closed meanwhile is another one now, or gone."""


class Pool:
    """Closes what was not read for longest, so that no more than so many files stay open.

    One that is being read is never closed; so more may be open while more threads than that read.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[Handle, None] = OrderedDict()

    def opened(self, handle: Handle) -> None:
        """A handle has opened its file: close others for it, if there are too many."""
        with self._lock:
            self._open[handle] = None
            self._close(len(self._open) - self._most)

    def closed(self, handle: Handle) -> None:
        """A handle has closed its file for good."""
        with self._lock:
            self._open.pop(handle, None)

    def close_idle(self) -> bool:
        """Close all that are not being read; gives whether there was any."""
        with self._lock:
            return self._close(len(self._open)) > 0

    def _close(self, count: int) -> int:
        """Close up to `count` files: those first that were not read since they were looked at."""
        done = 0
        for _ in range(2 * len(self._open)):
            if done >= count:
                break
            handle, _ = self._open.popitem(last=False)
            if handle.rest():
                done += 1
            else:
                self._open[handle] = None
        return done


@functools.cache
def process_pool() -> Pool:
    """The pool that the files of this process share."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST if soft == resource.RLIM_INFINITY else soft // _SHARE
    return Pool(max(_FEWEST, min(allowed, _MOST)))


class Handle:
    """One file, open for reading when it is needed, by any number of threads.

    Args:
        opener: opens it and gives its descriptor.
        pool: that closes it meanwhile; None: the process's.

    Attributes:
        status: of the file when it was opened first (fstat(2)).

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, opener: Callable[[], int], pool: Pool | None = None) -> None:
        self._opener = opener
        self._pool = pool or process_pool()
        self._lock = threading.Lock()
        self._users = 0
        self._ended = False
        self._read = True
        self._descriptor = self._opened()
        try:
            self.status = os.fstat(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._pool.opened(self)

    def take(self) -> int:
        """The file's descriptor, which stays open until `give`.

        Raises:
            OSError: the file cannot be opened again.
            Replaced: what could be opened again is another file.
        """
        with self._lock:
            if self._ended:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            new = self._descriptor < 0
            if new:
                self._descriptor = self._again()
            self._users += 1
            self._read = True
            descriptor = self._descriptor
        if new:
            self._pool.opened(self)
        return descriptor

    def give(self) -> None:
        """Say that what was taken is not needed any more."""
        with self._lock:
            self._users -= 1
            if self._ended and self._users == 0:
                self._close()

    def close(self) -> None:
        """Close it for good, once nobody reads it; safe to repeat."""
        with self._lock:
            self._ended = True
            if self._users == 0:
                self._close()
        self._pool.closed(self)

    def rest(self) -> bool:
        """Close the file until it is needed, unless it is being read or was since the last call.

        Gives whether it is closed. The pool calls it.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._users or self._read:
                self._read = False
                return False
            self._close()
            return True
        finally:
            self._lock.release()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        try:
            return self._opener()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._pool.close_idle():
                raise
        return self._opener()

    def _again(self) -> int:
        try:
            descriptor = self._opened()
        except FileNotFoundError as error:
            raise Replaced from error
        now, before = os.fstat(descriptor), self.status
        if not os.path.samestat(now, before) or now.st_size != before.st_size:
            os.close(descriptor)
            raise Replaced
        return descriptor
