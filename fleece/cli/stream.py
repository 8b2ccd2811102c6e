"""Deltas on standard output and standard input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
from collections.abc import Iterator
from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import ImportWords
from fleece.errors import FleeceError, UsageError
from fleece.terminal import human
from fleece.writeback import Writeback

_STDIN, _STDOUT = 0, 1


class _Output:
    """Standard output; a reader that takes nothing is waited for, and a signal ends that.

    Args:
        descriptor: where to write.
        most: bytes that it takes at once without being waited for, if it takes any; None: it takes
            what it can.
        cancel: ends the waiting.
    """

    def __init__(self, descriptor: int, most: int | None, cancel: CancelToken) -> None:
        self._descriptor = descriptor
        self._most = most
        self._cancel = cancel
        self._writeback = Writeback(descriptor)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write the first bytes of `data`; gives how many."""
        view = memoryview(data)[: self._most]
        while True:
            self._cancel.wait(self._descriptor, select.POLLOUT)
            try:
                taken = os.write(self._descriptor, view)
            except BlockingIOError:
                continue
            self._writeback.wrote(taken)
            return taken


@contextlib.contextmanager
def data_output(what: str, family: type[FleeceError], cancel: CancelToken) -> Iterator[_Output]:
    """Standard output for a delta or a disk; if it is a file or a device, it is durable afterwards.

    While it is written no program of QEMU's may write to it.

    Args:
        what: goes there.
        family: of the error if it is in use, or cannot be made durable.
        cancel: ends the waiting for whoever reads it.

    Raises:
        UsageError: it is a terminal, or closed.
    """
    if _way(_STDOUT) == os.O_RDONLY:
        raise UsageError("standard output is closed", hint="pipe it, or write it to a file")
    if os.isatty(_STDOUT):
        raise UsageError(
            f"{what} is not written to a terminal", hint="pipe it, or write it to a file"
        )
    mode = os.fstat(_STDOUT).st_mode
    stays = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
    with contextlib.ExitStack() as stack:
        if stays:
            stack.enter_context(fleece.claimed_output(_STDOUT, family))
        descriptor, most = stack.enter_context(_unblocked(mode))
        yield _Output(descriptor, most, cancel)
        if stays:
            try:
                os.fsync(_STDOUT)
            except OSError as error:
                raise family(f"the output cannot be made durable ({error.strerror})") from error


@contextlib.contextmanager
def _unblocked(mode: int) -> Iterator[tuple[int, int | None]]:
    """Standard output in such a way that no write blocks, and how much one may write.

    Whether a pipe blocks is a property that all who have it open share, so it is opened again.
    Where that cannot be (another user's pipe, a socket), writes are as short as any that is ready
    takes.
    """
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        yield _STDOUT, None
        return
    try:
        own = os.open(f"/proc/self/fd/{_STDOUT}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield _STDOUT, select.PIPE_BUF
        return
    try:
        yield own, None
    finally:
        os.close(own)


def _way(number: int) -> int:
    """Whether a descriptor is open for reading, writing or both, as `os.open` says it."""
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE


def import_delta(output: Output, cancel: CancelToken, words: ImportWords) -> None:
    """`fleece import STORE < FILE`."""
    if os.isatty(_STDIN) or _way(_STDIN) == os.O_WRONLY:
        raise UsageError("a delta is read from standard input", hint="fleece import STORE < FILE")

    def read(length: int) -> bytes:
        while True:
            cancel.wait(_STDIN, select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                return os.read(_STDIN, length)

    place = fleece.open_store(words.store, words.secret, cancel)
    result = fleece.import_delta(place, read, output.listen, cancel, adopt=words.adopt)
    text = (
        f"point {result.point} disk {result.disk}: {human(result.stored_bytes)}, root {result.root}"
    )
    text += ", was there already" if result.already else ", is committed"
    if result.missing:
        text += f"; the point still lacks {', '.join(result.missing)}"
    output.succeed(text, **asdict(result))
