"""A QMP monitor: `qemu.qmp` (asyncio) behind plain calls, on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.events import EventListener
from qemu.qmp.qmp_client import BadReplyError, GreetingError, NegotiationError

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import ExitCode, SourceError
from fleece.reach import connected, obstacle
from fleece.source.qemu.advice import advice
from fleece.source.qemu.answers import Answer
from fleece.source.workfolder import Owner

_CONNECT_LIMIT = 5.0
_ATTEMPTS = 5
COMMAND_LIMIT = 120.0

_TICK = 0.2
_CANCELLED_LIMIT = 15.0
"""Seconds that QEMU has for an answer once the run is interrupted."""

_LONGEST_REASON = 500
_NO_QMP = "is it QEMU that listens there?"

_THRESHOLD = "BLOCK_WRITE_THRESHOLD"
_RESUMED = "RESUME"

T = TypeVar("T")


class CommandError(SourceError):
    """QEMU refused a command. `reason` is QEMU's own text; the hint says what to do about it."""

    def __init__(self, command: str, reason: str, where: str) -> None:
        self.command = command
        self.reason = reason
        super().__init__(f"QEMU refused {command}: {reason}", where=where, hint=advice(reason))


class Unanswered(SourceError):
    """QEMU did not answer, or the connection is lost. What it did of the command is not known."""


class GivenUp(Unanswered):
    """The run was interrupted, and QEMU does not answer, so that nothing can be taken down."""

    code = ExitCode.INTERRUPTED

    def __init__(self, where: str) -> None:
        super().__init__(
            "interrupted, and QEMU does not answer: what this run made in it may still be there",
            where=where,
            hint="the next backup removes it, and so does fleece clean",
        )


@dataclass(frozen=True)
class Peer:
    """The process at the other end of the socket."""

    pid: int
    uid: int
    gid: int

    @property
    def owner(self) -> Owner:
        """The user that it runs as."""
        return Owner(self.uid, self.gid)


class Monitor(Closing):
    """A connected monitor. Use it from one thread at a time.

    Args:
        path: of the unix socket.
        cancel: when it is set, QEMU has little time left for each answer (`GivenUp`).

    Attributes:
        cancel: of the run.
        version: QEMU's version as three numbers.
        peer: QEMU's process.

    Raises:
        SourceError: nothing listens, it is no QMP, or another client holds the monitor.
    """

    def __init__(self, path: str, cancel: CancelToken | None = None) -> None:
        self.path = path
        self.cancel = cancel or CancelToken()
        self._given_up = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fleece-qmp", daemon=True
        )
        self._told = {_THRESHOLD: threading.Event(), _RESUMED: threading.Event()}
        self._thread.start()
        try:
            self._client, self.peer = self._connected()
        except BaseException:
            self._stop_loop()
            raise
        try:
            version = self.execute("query-version").part("qemu")
            self.version: tuple[int, int, int] = (
                version.number("major"),
                version.number("minor"),
                version.number("micro"),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect. QEMU goes on; what was set up in it stays."""
        if self._loop.is_closed():
            return
        try:
            self._why_lost()
        finally:
            self._stop_loop()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        limit: float = COMMAND_LIMIT,
    ) -> Answer:
        """Run one command and give what it returns.

        Args:
            command: its name.
            arguments: of the command.
            limit: seconds to wait for the answer.

        Raises:
            CommandError: QEMU refused it.
            GivenUp: the run was interrupted, and QEMU does not answer this or an earlier command.
            SourceError: the connection is lost, or QEMU did not answer in time.
        """
        if self._loop.is_closed():
            raise Unanswered("the connection to QEMU was closed", where=self.path)
        if self._given_up:
            raise GivenUp(self.path)
        try:
            result = self._run(
                self._client.execute(command, dict(arguments) if arguments else None),
                limit,
            )
        except ExecuteError as error:
            raise CommandError(command, _one_line(str(error)), self.path) from error
        except TimeoutError as error:
            raise Unanswered(
                f"QEMU did not answer {command} within {limit:.0f} s", where=self.path
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise self._lost(command, error) from error
        return Answer(result, command, self.path)

    def _lost(self, command: str, error: Exception) -> SourceError:
        """The error that a command has no answer, or one that is none."""
        if isinstance(error, BadReplyError):
            what = f"QEMU's answer to {command} is not valid"
        elif self._why_lost() is None:
            return Unanswered(
                f"the connection to QEMU was lost at {command}",
                where=self.path,
                hint="did QEMU end?",
            )
        else:
            what = f"what QEMU sent in place of its answer to {command} is not QMP"
        return Unanswered(what, where=self.path, hint=_NO_QMP)

    def _why_lost(self) -> Exception | None:
        """Disconnect; gives what was wrong with what came last. None: nothing, or it just ended."""
        try:
            self._run(self._client.disconnect(), _CONNECT_LIMIT)
        except (SourceError, OSError, EOFError, TimeoutError):
            return None
        except Exception as error:  # whatever the client makes of what it cannot parse
            return error
        return None

    def transaction(self, actions: list[dict[str, object]], limit: float = COMMAND_LIMIT) -> None:
        """Run actions all or none, all at one point in time, within `limit` seconds."""
        self.execute("transaction", {"actions": actions}, limit)

    def threshold_crossed(self) -> bool:
        """Whether a write threshold was crossed since the last call. Asks QEMU nothing."""
        return self._was_told(_THRESHOLD)

    def guest_resumed(self) -> bool:
        """Whether anybody let the guest go on since the last call. Asks QEMU nothing.

        An event that QEMU sent before its answer to a command is known when that is answered.
        """
        return self._was_told(_RESUMED)

    def _was_told(self, event: str) -> bool:
        told = self._told[event].is_set()
        self._told[event].clear()
        return told

    def _note(self, event: Message) -> bool:
        told = self._told.get(str(event["event"]))
        if told is not None:
            told.set()
        return False  # so that nothing is queued

    def _connected(self) -> tuple[QMPClient, Peer]:
        """A new connection, on which QEMU has answered what we said and nobody else.

        What QEMU answers to a command whose client died meanwhile, it tells the next client, who
        takes it for the greeting, or for the answer to its own first command (seen on 7.2 and 10).
        If that was an error, or no greeting, the client gives up; the next attempt finds it out of
        the way. If it was none, the client drops the answer that is left over. Later it cannot
        come: QEMU does one command after another.
        """
        attempts = itertools.count(1)
        while True:
            end = self._open_socket()
            client = QMPClient("fleece")
            # Nobody reads events here, and the client would keep every one of them.
            client.events.event_filter = lambda event: False
            client.register_listener(EventListener(self._told, self._note))
            try:
                self._run(client.connect(end), _CONNECT_LIMIT)
                return client, _peer(end)
            except (TimeoutError, QMPError, OSError, EOFError) as error:
                end.close()
                if not _may_be_anothers(error) or next(attempts) == _ATTEMPTS:
                    raise self._refused(error) from error
            except BaseException:
                end.close()
                raise

    def _open_socket(self) -> socket.socket:
        try:
            end = connected(self.path, _CONNECT_LIMIT)
        except OSError as error:
            found = obstacle(self.path, error.errno)
            raise SourceError(
                f"the QMP monitor cannot be reached: {found.what}",
                where=self.path,
                hint=found.hint or "start QEMU with -qmp unix:PATH,server=on,wait=off",
            ) from error
        end.setblocking(False)
        return end

    def _refused(self, error: BaseException) -> SourceError:
        if isinstance(error, TimeoutError):
            return SourceError(
                "the monitor does not greet",
                where=self.path,
                hint="another client holds it, or it is not a QMP socket; give "
                "fleece a monitor of its own",
                busy=True,
            )
        reason = _one_line(str(error).partition("\n")[0])
        return SourceError(f"this is not a QMP monitor ({reason})", where=self.path)

    def _run(self, work: Coroutine[Any, Any, T], limit: float) -> T:
        async def timed() -> T:
            return await asyncio.wait_for(work, limit)

        future = asyncio.run_coroutine_threadsafe(timed(), self._loop)
        end: float | None = None
        while not wait([future], _TICK).done:
            if self.cancel.cancelled:
                end = end or time.monotonic() + _CANCELLED_LIMIT
                if time.monotonic() > end:
                    future.cancel()
                    self._given_up = True
                    raise GivenUp(self.path)
        return future.result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _may_be_anothers(error: BaseException) -> bool:
    """Whether what came may be the answer to a command of a client before."""
    return isinstance(error, ConnectError) and isinstance(
        error.exc, GreetingError | NegotiationError
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_REASON]


def _peer(connected: socket.socket) -> Peer:
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", raw))
