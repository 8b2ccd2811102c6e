"""Lines to and from a program, each wait of which has an end; and what it says of its errors."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from fleece.terminal import shown

_TICK = 0.2
_PIECE = 1 << 16
_LINES = 20
_LONGEST_SAID = 500

Patience = Callable[[float], bool]
"""Whether a wait that began at a time may go on; it may raise."""


class Overdue(Exception):
    """The other side takes longer than it may."""


class Closed(Exception):
    """The other side has ended, or closed the pipe."""


class TooLong(Exception):
    """A line has no end."""


class Lines:
    """A pipe to write lines to, and one to read lines from.

    Args:
        to, of: descriptors, which are closed by who has them.
        longest: bytes of a line that is read.
    """

    def __init__(self, to: int, of: int, longest: int) -> None:
        self._to = to
        self._of = of
        self._longest = longest
        self._left = b""
        os.set_blocking(to, False)
        os.set_blocking(of, False)

    @property
    def unasked(self) -> bool:
        """Something can be read though nothing was asked."""
        poll = select.poll()
        poll.register(self._of, select.POLLIN)
        return bool(self._left or poll.poll(0))

    def write(self, line: bytes, patience: Patience) -> None:
        """Write a line.

        Raises:
            Overdue, Closed: as they say.
        """
        left, begun = memoryview(line + b"\n"), time.monotonic()
        while left:
            self._wait(self._to, select.POLLOUT, begun, patience)
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Closed from error

    def read(self, patience: Patience) -> bytes:
        """The next line, without its end.

        Raises:
            Overdue, Closed, TooLong: as they say.
        """
        begun = time.monotonic()
        while b"\n" not in self._left:
            if len(self._left) > self._longest:
                raise TooLong
            self._wait(self._of, select.POLLIN, begun, patience)
            self._left += self._piece()
        line, _, self._left = self._left.partition(b"\n")
        if len(line) > self._longest:
            raise TooLong
        return line

    def _piece(self) -> bytes:
        """What can be read now."""
        try:
            piece = os.read(self._of, _PIECE)
        except BlockingIOError:
            return b""
        if not piece:
            raise Closed
        return piece

    def skip(self) -> bool:
        """Forget what can be read now, so that nobody waits for it to be; False: it was the end."""
        self._left = b""
        try:
            self._piece()
        except Closed:
            return False
        return True

    def _wait(self, pipe: int, event: int, begun: float, patience: Patience) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        ready = False
        while not ready:  # what comes a byte at a time is no answer either
            if not patience(begun):
                raise Overdue
            ready = bool(poll.poll(_TICK * 1000))


class Errors:
    """What a program says on its standard error: the last of it.

    Args:
        of: the descriptor, which is closed when nobody has its other end any more.
    """

    def __init__(self, of: int) -> None:
        self._of = of
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._read, name="fleece-provider", daemon=True)
        self._thread.start()

    def taken(self) -> tuple[str, ...]:
        """What it has said since this was last asked, a line each, fit for a terminal."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._lines.popleft())
        return tuple(found)

    def wait(self, limit: float) -> None:
        """Wait for the end of what it says, so many seconds at most."""
        self._thread.join(limit)

    def _read(self) -> None:
        left = b""
        with contextlib.suppress(OSError), open(self._of, "rb", buffering=0) as pipe:
            while piece := pipe.read(_PIECE):
                *lines, left = (left + piece).split(b"\n")
                for line in lines:
                    self._note(line)
                left = left[-_PIECE:]
            self._note(left)

    def _note(self, line: bytes) -> None:
        text = shown(line.decode(errors="surrogateescape").strip())
        if text:
            self._lines.append(text[:_LONGEST_SAID])
