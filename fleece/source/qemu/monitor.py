"""A QMP monitor: `qemu.qmp` (asyncio) behind plain calls, on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.events import EventListener
from qemu.qmp.qmp_client import NegotiationError

from fleece.errors import SourceError
from fleece.source.qemu.advice import advice

_CONNECT_LIMIT = 5.0
_ATTEMPTS = 5
COMMAND_LIMIT = 120.0

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


@dataclass(frozen=True)
class Peer:
    """The process at the other end of the socket."""

    pid: int
    uid: int
    gid: int


class Monitor:
    """A connected monitor. Use it from one thread at a time.

    Args:
        path: of the unix socket.

    Attributes:
        version: QEMU's version as three numbers.
        peer: QEMU's process.

    Raises:
        SourceError: nothing listens, it is no QMP, or another client holds the monitor.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fleece-qmp", daemon=True
        )
        self._told = {_THRESHOLD: threading.Event(), _RESUMED: threading.Event()}
        self._thread.start()
        try:
            self._client, self.peer = self._connected()
            version = self.execute("query-version")["qemu"]
        except BaseException:
            self._stop_loop()
            raise
        self.version: tuple[int, int, int] = (version["major"], version["minor"], version["micro"])

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. QEMU goes on; what was set up in it stays."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.disconnect(), _CONNECT_LIMIT)
        except (QMPError, OSError, EOFError, TimeoutError):
            pass
        finally:
            self._stop_loop()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        limit: float = COMMAND_LIMIT,
    ) -> Any:
        """Run one command and give what it returns.

        Args:
            command: its name.
            arguments: of the command.
            limit: seconds to wait for the answer.

        Raises:
            CommandError: QEMU refused it.
            SourceError: the connection is lost, or QEMU did not answer in time.
        """
        if self._loop.is_closed():
            raise Unanswered("the connection to QEMU was closed", where=self.path)
        try:
            result = self._run(
                self._client.execute(command, dict(arguments) if arguments else None),
                limit,
            )
        except ExecuteError as error:
            raise CommandError(command, str(error), self.path) from error
        except TimeoutError as error:
            raise Unanswered(
                f"QEMU did not answer {command} within {limit:.0f} s", where=self.path
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise Unanswered(
                f"the connection to QEMU was lost at {command}",
                where=self.path,
                hint="did QEMU end?",
            ) from error
        # Nobody reads events here, and the client would keep every one of them.
        self._loop.call_soon_threadsafe(self._client.events.clear)
        return result

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
        self._told[str(event["event"])].set()
        return False  # so that nothing is queued

    def _connected(self) -> tuple[QMPClient, Peer]:
        """A new connection, on which QEMU has answered what we said and nobody else.

        What QEMU answers to a command whose client died meanwhile, it tells the next client, who
        takes it for the answer to its own first one (seen on 7.2). If that was an error, the
        client gives up; the next attempt finds it out of the way. If it was none, the client drops
        the answer that is left over. Later it cannot come: QEMU does one command after another.
        """
        attempts = itertools.count(1)
        while True:
            connected = self._open_socket()
            client = QMPClient("fleece")
            client.register_listener(EventListener(self._told, self._note))
            try:
                self._run(client.connect(connected), _CONNECT_LIMIT)
                return client, _peer(connected)
            except (TimeoutError, QMPError, OSError, EOFError) as error:
                connected.close()
                if not _refused_once_greeted(error) or next(attempts) == _ATTEMPTS:
                    raise self._refused(error) from error

    def _open_socket(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(_CONNECT_LIMIT)
        try:
            connected.connect(self.path)
        except OSError as error:
            connected.close()
            text = error.strerror or str(error)
            raise SourceError(
                f"no QMP monitor can be reached here ({text})",
                where=self.path,
                hint="start QEMU with -qmp unix:PATH,server=on,wait=off",
            ) from error
        connected.setblocking(False)
        return connected

    def _refused(self, error: BaseException) -> SourceError:
        if isinstance(error, TimeoutError):
            return SourceError(
                "the monitor does not greet",
                where=self.path,
                hint="another client holds it, or it is no QMP socket; give "
                "fleece a monitor of its own",
            )
        reason = str(error).partition("\n")[0]
        return SourceError(f"this is no QMP monitor ({reason})", where=self.path)

    def _run(self, work: Coroutine[Any, Any, T], limit: float) -> T:
        async def timed() -> T:
            return await asyncio.wait_for(work, limit)

        return asyncio.run_coroutine_threadsafe(timed(), self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _refused_once_greeted(error: BaseException) -> bool:
    return isinstance(error, ConnectError) and isinstance(error.exc, NegotiationError)


def _peer(connected: socket.socket) -> Peer:
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", raw))
