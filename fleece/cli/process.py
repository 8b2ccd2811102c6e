"""What the command line sets for its own process. The library leaves its caller's process alone."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MIB = 1 << 20


def set_up_process() -> None:
    """Keep freed buffers for the next ones, and numpy from starting threads.

    Reads and frames are buffers of 1 MiB, some thousand a second. By default glibc maps each one
    afresh, or gives the top of the heap back in between, and the kernel then blanks the same pages
    again and again: a tenth of a backup's processor time (docs/benchmarks.rst). mallopt(3) has the
    numbers. Where the C library has no mallopt, all works as before.

    OpenBLAS starts a thread for each core when numpy is loaded, and nothing here multiplies
    matrices.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
