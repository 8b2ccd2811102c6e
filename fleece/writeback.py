"""Have the system write a file out while it is still being filled.

By itself Linux begins when a tenth of the memory is dirty or pages are half a minute old (vm.rst,
`dirty_background_ratio`, `dirty_expire_centisecs`). So most files would be whole in memory before
the first byte is on its way, and the fsync at the end would take as long as the disk does for all.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

STEP = 8 << 20
"""Bytes of a file that are gathered before they are sent on their way."""

_START = 2
"""linux/fs.h: SYNC_FILE_RANGE_WRITE: start writing what is dirty, wait for nothing."""

_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)
"""What systems and files answer that cannot do it: they write when they see fit."""


class Writeback:
    """Counts what is written to a file, and starts the writing out at each `STEP`.

    It makes nothing durable: fsync does, and tells of all that failed until then. For any number of
    threads; two that count at the same moment may start it a step later.

    Args:
        descriptor: of the file; it stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = 0

    def wrote(self, count: int) -> None:
        """Count bytes that were written.

        Raises:
            OSError: the writing out could not be started: the disk is full or broken.
        """
        self._waiting += count
        if self._waiting < STEP:
            return
        self._waiting = 0
        if _sync_file_range(self._descriptor, 0, 0, _START) != 0:
            number = ctypes.get_errno()
            if number not in _NOT_HERE:
                raise OSError(number, os.strerror(number))


def _load() -> Callable[[int, int, int, int], int]:
    """sync_file_range(2), which Python's os module lacks; other threads run meanwhile."""
    found = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if found is None:
        return lambda descriptor, offset, length, flags: 0
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = found
    return call


_sync_file_range = _load()
