"""A connection to libvirt: calls that have an end, and errors that say what libvirt said.

A call of libvirt's may take for ever: a QEMU that hangs holds the guest's job, and a libvirtd that
is far away may just be gone. So all calls are made by a thread of their own, one after the other,
and whoever waits for one gives up when its time is over or soon after the run is interrupted.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fleece.cancel import CancelToken
from fleece.errors import ExitCode, SourceError, UsageError

_TICK = 0.2
_CANCELLED_LIMIT = 15.0
"""Seconds that libvirt has for an answer once the run is interrupted."""
ANSWER_LIMIT = 60.0
"""Seconds for most answers: a guest that another operation holds makes libvirt wait for 30."""
BEGIN_LIMIT = 120.0
_LONGEST_REASON = 500

T = TypeVar("T")


class Refused(SourceError):
    """libvirt refused a call.

    Attributes:
        number: `virErrorNumber`, whose meaning is in libvirt's virterror.h.
        reason: libvirt's own text.
    """

    def __init__(self, what: str, number: int, reason: str, where: str) -> None:
        self.number = number
        self.reason = " ".join(reason.split())[:_LONGEST_REASON]
        super().__init__(f"libvirt refused {what}: {self.reason}", where=where)


class Unanswered(SourceError):
    """libvirt did not answer. What it did of the call is not known."""


class GivenUp(Unanswered):
    """The run was interrupted, and libvirt does not answer."""

    code = ExitCode.INTERRUPTED


@functools.cache
def binding() -> Any:
    """The module of libvirt's Python bindings.

    Its errors are no longer printed on standard error, which is how libvirt is set for the whole
    process (libvirt-python, `registerErrorHandler`).

    Raises:
        UsageError: the distribution's package is not installed.
    """
    try:
        import libvirt
    except ImportError as error:
        raise UsageError(
            "libvirt's Python bindings are missing",
            hint="install the distribution's package (Debian: python3-libvirt)",
        ) from error
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return libvirt


class Calls:
    """Makes calls to libvirt, one at a time.

    Args:
        where: of the source, for messages.
        cancel: when it is set, libvirt has little time left for each answer (`GivenUp`).
    """

    def __init__(self, where: str, cancel: CancelToken) -> None:
        self.where = where
        self.cancel = cancel
        self._stuck = False
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="fleece-libvirt", daemon=True).start()

    def __call__(self, what: str, call: Callable[[], T], limit: float = ANSWER_LIMIT) -> T:
        """Make a call.

        Args:
            what: is asked for, for messages.
            call: makes it.
            limit: seconds until it is given up.

        Raises:
            Refused: libvirt's answer is an error.
            Unanswered: it did not answer.
        """
        if self._stuck:
            raise Unanswered(f"libvirt still has not answered, so it was not asked for {what}")
        future: Future[T] = Future()
        self._queue.put(functools.partial(_answer, future, call))
        end, interrupted = time.monotonic() + limit, False
        while not wait([future], _TICK).done:
            if self.cancel.cancelled and not interrupted:
                interrupted, end = True, min(end, time.monotonic() + _CANCELLED_LIMIT)
            if time.monotonic() > end:
                self._stuck = True
                raise self._late(what, limit, interrupted=interrupted)
        error = future.exception()
        if isinstance(error, binding().libvirtError):
            raise Refused(what, error.get_error_code(), error.get_error_message(), self.where)
        return future.result()

    def close(self) -> None:
        """Make no more calls; one that is not answered yet is left to itself."""
        self._queue.put(None)

    def _late(self, what: str, limit: float, *, interrupted: bool) -> Unanswered:
        if interrupted:
            return GivenUp(
                "interrupted, and libvirt does not answer: what this run made may still be there",
                where=self.where,
                hint="the next backup removes it, and so does fleece clean",
            )
        return Unanswered(
            f"libvirt did not answer within {limit:.0f} s ({what})",
            where=self.where,
            hint="does the guest's QEMU hang? virsh domstate --reason tells",
        )

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            call()


class Libvirt:
    """A libvirt that answers.

    Args:
        uri: of it; None: libvirt's own default.
        where: of the source, for messages.
        cancel: of the run.

    Attributes:
        calls: makes calls to it.
        connection: libvirt's own object.
        lib: the module of libvirt's bindings.
        uri: of it.

    Raises:
        Refused: it cannot be reached.
        UsageError: libvirt's Python bindings are missing.
    """

    def __init__(self, uri: str | None, where: str, cancel: CancelToken) -> None:
        self.lib = binding()
        self.calls = Calls(where, cancel)
        try:
            self.connection = self.calls("a connection", lambda: self.lib.open(uri))
            self.uri: str = self.calls("its URI", self.connection.getURI)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Make no more calls. Safe to repeat."""
        self.calls.close()

    @property
    def other_host(self) -> str | None:
        """The host that it is on; None: this one."""
        host = urlsplit(self.uri).hostname
        return None if host in ("", "localhost") else host

    @property
    def mode(self) -> str:
        """Whose libvirt it is: system, or session for an ordinary user's."""
        return urlsplit(self.uri).path.lstrip("/")

    @property
    def of_system(self) -> bool:
        """Whether it is the host's own."""
        return urlsplit(self.uri).path.endswith("/system")

    @property
    def of_session(self) -> bool:
        """Whether it is that of an ordinary user."""
        return urlsplit(self.uri).path == "/session"


def _answer(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
