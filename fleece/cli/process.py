"""What the command line sets for its own process. The library leaves its caller's process alone."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys

from fleece.cli.output import ShownStream

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MIB = 1 << 20
_NEW_OBJECTS = 100_000


def fill_standard_streams() -> None:
    """Put something in the place of standard input, output and error that are closed.

    Else the next file that is opened, here or by QEMU's tools, would have such a number: what is
    printed would go into an image or a delta. Text goes nowhere then; data is refused, because the
    descriptors are open the wrong way round.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)
            os.set_inheritable(number, True)
    # Python's print without a standard error is one to standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def guard_terminal() -> None:
    """Have standard error escape what a terminal would obey, whoever prints it.

    What standard output's encoding lacks is escaped too, where it would be an error.
    """
    if not isinstance(sys.stderr, ShownStream) and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = ShownStream(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def set_up_process() -> None:
    """Start and end sooner, and keep freed buffers. Call it before anything heavy is loaded."""
    # OpenBLAS starts a thread for each core when numpy is loaded, and nothing here multiplies
    # matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Loading modules makes many objects that stay: looking through them for garbage takes as long
    # as a tenth of the loading, and again when the interpreter ends.
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
    _keep_buffers()


def _keep_buffers() -> None:
    """Have the C library keep freed buffers for the next ones.

    Reads and frames are buffers of 1 MiB, some thousand a second. By default glibc maps each one
    afresh, or gives the top of the heap back in between, and the kernel then blanks the same pages
    again and again (docs/benchmarks.rst). mallopt(3) has the numbers. Where the C library has no
    mallopt, all works as before.
    """
    # Not with the module: ctypes has libffi 3.8 keep a file open (seen on Python 3.14), which must
    # not get the number of a standard stream that is closed.
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
