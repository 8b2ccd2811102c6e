"""Ask a fleece elsewhere, over the standard streams of a program that leads there.

Any number of threads ask at once. Whoever waits for an answer reads for all, so there is no thread
that must be ended, and a program that has died or says nothing ends all waits.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import DeltaError, FleeceError, Interrupted, StoreError, UnreadableError
from fleece.programs import one_line, using
from fleece.store.errors import Gone
from fleece.store.remote.wire import GREETING, Message, WireError, packed, received

SILENCE = 120.0
"""Seconds without a byte after which the other side counts as gone; it shows life every few."""

_LAST = 10.0
"""Seconds for each answer once the run is cancelled: what was begun is still cleaned up."""

_TICK = 200
_SAID = 4096
"""Bytes of what the program says on standard error that are kept for messages."""

_KINDS: dict[str, type[FleeceError]] = {
    "StoreError": StoreError,
    "DeltaError": DeltaError,
    "UnreadableError": UnreadableError,
    "Gone": Gone,
    "Interrupted": StoreError,
}


class _Ended(Exception):
    """The program has ended, or does not answer."""


class Channel:
    """A running program that answers; it ends when nobody holds this any more.

    Args:
        words: of its command line.
        where: the store, for messages.
        cancel: ends every wait, but leaves time to clean up.

    Raises:
        StoreError: it cannot be run, or what answers is no fleece.
    """

    def __init__(self, words: Sequence[str], where: str, cancel: CancelToken) -> None:
        self.where = where
        self._cancel = cancel
        with using(words):
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(),
                start_new_session=True,
                bufsize=0,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._error = process.stderr.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._error, False)
        self._end = weakref.finalize(self, _finish, process)
        self._said = b""
        self._numbers = itertools.count(1)
        self._writing = threading.Lock()
        self._turn = threading.Condition()
        self._read_by_one = False
        self._answers: dict[int, Message | None] = {}
        self._broken: dict[int, FleeceError] = {}
        self._dead: str | None = None
        try:
            if self._take(len(GREETING)) != GREETING:
                raise WireError("what answers is no fleece that serves a store")
        except (_Ended, WireError) as error:
            failure = self._failure(str(error))
            self._end()
            raise failure from None

    def ask(self, do: str, data: bytes = b"", /, **said: object) -> Message:
        """Ask for something, and wait for the answer.

        Raises:
            StoreError: what the other side says went wrong, or it has gone.
            Interrupted: the run was cancelled, and there is still no answer.
        """
        number = next(self._numbers)
        with self._turn:
            self._answers[number] = None
        try:
            self._send(Message({"do": do, "id": number, **said}, data))
            answer = self._answer(number)
        finally:
            with self._turn:
                self._answers.pop(number, None)
        if "error" in answer.said:
            raise self._told(answer)
        return answer

    def write(self, handle: int, data: bytes | memoryview) -> None:
        """Send bytes to a sink; only an error is answered, and told by the next call about it."""
        self.check(handle)
        self._send(Message({"do": "write", "handle": handle}, bytes(data)))
        self._look()
        self.check(handle)

    def check(self, handle: int) -> None:
        """Raise the error that a write to a sink has met."""
        if (error := self._broken.get(handle)) is not None:
            raise error

    def _told(self, answer: Message) -> FleeceError:
        found = answer.said["error"]
        if not isinstance(found, dict):
            return self._failure("an error is none")
        said = {name: value for name, value in found.items() if isinstance(value, str)}
        kind = _KINDS.get(said.get("kind", ""), StoreError)
        where = said.get("where")
        place = self.where if where is None else f"{self.where} ({where})"
        return kind(said.get("what", "failed"), where=place, hint=said.get("hint"))

    def _failure(self, what: str) -> StoreError:
        self._hear()
        said = one_line(self._said)[-500:]
        return StoreError(
            f"{what} ({said})" if said else what,
            where=self.where,
            hint="try the same with ssh itself; fleece must be installed on both hosts",
        )

    def _send(self, message: Message) -> None:
        view = memoryview(packed(message))
        with self._writing:
            try:
                self._send_all(view)
            except BaseException:
                self._die("was interrupted")  # in the middle of a message
                raise

    def _send_all(self, view: memoryview) -> None:
        end = time.monotonic() + SILENCE
        poll = select.poll()
        poll.register(self._in, select.POLLOUT)
        while view:
            if self._dead is not None:
                raise self._failure(self._dead)
            try:
                view = view[os.write(self._in, view) :]
                end = time.monotonic() + SILENCE
            except BlockingIOError:
                poll.poll(_TICK)
                self._hear()
                if time.monotonic() > end - self._less():
                    self._die("takes nothing any more")
            except OSError:  # it has ended; what it said before that tells why
                return

    def _less(self) -> float:
        """By how much less it is waited once the run is cancelled."""
        return max(0, SILENCE - _LAST) if self._cancel.cancelled else 0

    def _answer(self, number: int) -> Message:
        end: float | None = None
        while True:
            if end is None and self._cancel.cancelled:
                end = time.monotonic() + _LAST
            if end is not None and time.monotonic() > end:
                raise Interrupted
            with self._turn:
                if self._answers[number] is None and self._dead is None and self._read_by_one:
                    self._turn.wait(_TICK / 1000)
                    continue
                found = self._answers[number]
                if found is not None:
                    return found
                if self._dead is not None:
                    raise self._failure(self._dead)
                self._read_by_one = True
            self._read_one()

    def _look(self) -> None:
        """Read what has come, if nobody does."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        while True:
            with self._turn:
                # In the same turn: else another thread may take all that there is, and this one
                # waits for an answer that nobody has asked for.
                if self._read_by_one or self._dead is not None or not poll.poll(0):
                    return
                self._read_by_one = True
            self._read_one()

    def _read_one(self) -> None:
        """Read a message, whosever it is; the caller has taken the turn."""
        message, dead = None, "was interrupted"
        try:
            message = received(self._take)
        except (_Ended, WireError) as error:
            dead = str(error)
        finally:
            with self._turn:
                self._read_by_one = False
                if message is not None:
                    self._sort(message)
                else:  # what comes next is no beginning of a message
                    self._dead = self._dead or dead
                self._turn.notify_all()

    def _sort(self, message: Message) -> None:
        number, failed = message.said.get("id"), message.said.get("failed")
        if type(number) is int and number in self._answers:
            self._answers[number] = message
        elif type(failed) is int:
            self._broken.setdefault(failed, self._told(message))

    def _die(self, why: str) -> None:
        with self._turn:
            self._dead = self._dead or why
            self._turn.notify_all()

    def _take(self, length: int) -> bytes:
        """Exactly so many bytes from the other side."""
        parts = []
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        poll.register(self._error, select.POLLIN)
        end = time.monotonic() + SILENCE
        while length:
            ready = dict(poll.poll(_TICK))
            if self._error in ready and not self._hear():
                poll.unregister(self._error)
            if self._out in ready:
                part = os.read(self._out, min(length, 1 << 20))
                if not part:
                    raise _Ended("the connection has ended")
                parts.append(part)
                length -= len(part)
                end = time.monotonic() + SILENCE
            elif time.monotonic() > end - self._less():
                raise _Ended(f"does not answer for {SILENCE - self._less():.0f} s")
        return b"".join(parts)

    def _hear(self) -> bool:
        """Keep the end of what the program says; gives whether it may say more."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._error, 65536):
                self._said = (self._said + part)[-_SAID:]
            return False
        return True


def _finish(process: subprocess.Popen[bytes]) -> None:
    """Let the program end: nothing is asked any more."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
