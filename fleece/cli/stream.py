"""Deltas on standard output and standard input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output, human
from fleece.errors import FleeceError, UsageError

_STDIN, _STDOUT = 0, 1


@contextlib.contextmanager
def data_output(what: str, family: type[FleeceError]) -> Iterator[BinaryIO]:
    """Standard output for a delta or a disk; if it is a file or a device, it is durable afterwards.

    Args:
        what: goes there.
        family: of the error if it cannot be made durable.

    Raises:
        UsageError: it is a terminal, or closed.
    """
    if _way(_STDOUT) == os.O_RDONLY:
        raise UsageError("standard output is closed", hint="pipe it, or write it to a file")
    if os.isatty(_STDOUT):
        raise UsageError(
            f"{what} on a terminal is of no use", hint="pipe it, or write it to a file"
        )
    with open(_STDOUT, "wb", buffering=0, closefd=False) as stream:
        yield stream
        mode = os.fstat(_STDOUT).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            try:
                os.fsync(_STDOUT)
            except OSError as error:
                raise family(f"the output cannot be made durable ({error.strerror})") from error


def _way(number: int) -> int:
    """Whether a descriptor is open for reading, writing or both, as `os.open` says it."""
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE


def import_delta(
    output: Output, cancel: CancelToken, store: str, secret: fleece.Secret | None
) -> None:
    """`fleece import STORE < FILE`."""
    if os.isatty(_STDIN) or _way(_STDIN) == os.O_WRONLY:
        raise UsageError("a delta is read from standard input", hint="fleece import STORE < FILE")
    with open(_STDIN, "rb", buffering=0, closefd=False) as stream:
        result = fleece.import_delta(store, stream.read, secret, output.listen, cancel)
    text = (
        f"point {result.point} disk {result.disk}: {human(result.stored_bytes)}, root {result.root}"
    )
    text += ", was there already" if result.already else ", is committed"
    if result.missing:
        text += f"; the point still lacks {', '.join(result.missing)}"
    output.succeed(text, **asdict(result))
