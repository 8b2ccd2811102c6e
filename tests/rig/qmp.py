"""Small synchronous clients: QEMU's monitor (QMP) and the guest agent.

They exist so that the rig can steer QEMU without the code under test. Every wait has a limit in
seconds and ends in TimeoutError.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rig.process import LIMIT, RigError, doings

JsonObject = dict[str, Any]

_SLICE_SECONDS = 0.05


class QmpError(RigError):
    """A command was answered with an error.

    Attributes:
        error_class: QEMU's class of the error, mostly ``GenericError``.
        description: QEMU's words.
    """

    def __init__(self, command: str, error: Mapping[str, Any]) -> None:
        self.error_class = str(error.get("class", ""))
        self.description = str(error.get("desc", ""))
        super().__init__(f"{command}: {self.description}")


def connect_unix(
    path: Path, timeout: float, alive: Callable[[], bool] = lambda: True
) -> socket.socket:
    """Connect to a unix socket that may not be there yet.

    Args:
        path: the socket.
        timeout: seconds to go on trying.
        alive: whether the process that shall listen there still runs.

    Raises:
        RigError: that process has ended.
        TimeoutError: nobody listened in time.
    """
    end = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
        else:
            return connection
        if not alive():
            raise RigError(f"the process behind {path} has ended")
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens on {path}")
        time.sleep(0.01)


class _JsonLines:
    """JSON objects, one a line, over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""

    @property
    def peer(self) -> int:
        """The id of the process that listened (unix(7), SO_PEERCRED)."""
        size = struct.calcsize("3i")
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", found)[0])

    def send(self, message: JsonObject, prefix: bytes = b"") -> None:
        self._socket.settimeout(LIMIT)
        self._socket.sendall(prefix + json.dumps(message).encode() + b"\n")

    def receive_line(self, end: float) -> bytes:
        """The next line, without its end; TimeoutError after the monotonic time `end`."""
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the peer closed the connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def receive(self, end: float) -> JsonObject:
        """The next object; TimeoutError after the monotonic time `end`."""
        message: JsonObject = json.loads(self.receive_line(end))
        return message

    def close(self) -> None:
        self._socket.close()


class Monitor:
    """A QMP connection; may be used by several threads.

    Args:
        path: the monitor's unix socket. QEMU serves one client at a time on each monitor.
        timeout: seconds to wait for the socket and for the greeting.
        alive: whether QEMU still runs; ends the wait early when it does not.

    Attributes:
        greeting: QEMU's first message (version and capabilities).
        events: the events that came and were not yet taken by `wait_event`.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout: float = LIMIT,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._lines = _JsonLines(connect_unix(path, timeout, alive))
        self.events: list[JsonObject] = []
        try:
            self.greeting = self._lines.receive(time.monotonic() + timeout)
            self.command("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()

    def command(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float = LIMIT,
    ) -> Any:
        """Execute a command and return what it returns.

        Raises:
            QmpError: QEMU refused it.
            TimeoutError: no answer in time; a late one will be skipped.
            EOFError, OSError: QEMU has gone.
        """
        with self._lock:
            number = next(self._numbers)
            self._lines.send({"execute": name, "arguments": dict(arguments or {}), "id": number})
            end = time.monotonic() + timeout
            while True:
                try:
                    message = self._lines.receive(end)
                except TimeoutError as error:
                    raise TimeoutError(
                        f"{name} has no answer after {timeout:g} s; QEMU's threads:\n"
                        + doings(self._lines.peer)
                    ) from error
                if "event" in message:
                    self.events.append(message)
                elif message.get("id") == number:
                    break
        if "error" in message:
            raise QmpError(name, message["error"])
        return message["return"]

    def hmp(self, line: str) -> str:
        """Execute a line of the human monitor; returns what the monitor prints."""
        return str(self.command("human-monitor-command", {"command-line": line}))

    def wait_event(self, name: str, timeout: float = LIMIT, **data: Any) -> JsonObject:
        """Wait for an event, or take one that came before.

        Args:
            name: such as ``JOB_STATUS_CHANGE``.
            timeout: seconds.
            data: members that the event's data must have, such as ``status="concluded"``.

        Returns:
            The whole event; it is taken from `events`.

        Raises:
            TimeoutError: it did not come in time.
        """
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                taken = self._take_event(name, data)
                if taken is not None:
                    return taken
                self._pump(min(end, time.monotonic() + _SLICE_SECONDS))
            if time.monotonic() > end:
                raise TimeoutError(f"no event {name} {data or ''}; there were {self.events}")

    def _take_event(self, name: str, data: Mapping[str, Any]) -> JsonObject | None:
        for event in self.events:
            if event["event"] == name and data.items() <= event.get("data", {}).items():
                self.events.remove(event)
                return event
        return None

    def _pump(self, end: float) -> None:
        """Take in the next event, if one comes before the monotonic time `end`."""
        with suppress(TimeoutError):
            message = self._lines.receive(end)
            if "event" in message:
                self.events.append(message)


@dataclass(frozen=True)
class ShellResult:
    """How a shell script in the guest ended."""

    code: int
    out: str
    err: str


class GuestAgent:
    """A connection to qemu-ga in the guest.

    The agent has no greeting and may not be up yet: the constructor asks until it answers. It
    serves one client at a time; a second one gets no answer.

    Args:
        path: the unix socket of the agent's port.
        timeout: seconds to wait for the first answer.
    """

    def __init__(self, path: Path, *, timeout: float = LIMIT) -> None:
        end = time.monotonic() + timeout
        self._lines = _JsonLines(connect_unix(path, timeout))
        try:
            patience = 0.25
            while not self._synced(min(end, time.monotonic() + patience)):
                if time.monotonic() > end:
                    raise TimeoutError("the guest agent does not answer")
                patience *= 2  # the answer to an older question does not count
        except BaseException:
            self.close()
            raise

    def _synced(self, end: float) -> bool:
        """Ask once; whether the answer came before the monotonic time `end`."""
        number = time.monotonic_ns() & 0x7FFFFFFF
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._lines.send(request, prefix=b"\xff")
        with suppress(TimeoutError):
            while True:
                # Before the 0xff there may be what earlier clients left.
                _, mark, line = self._lines.receive_line(end).rpartition(b"\xff")
                if mark and json.loads(line).get("return") == number:
                    return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, so that the next client is heard."""
        self._lines.close()

    def command(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float = LIMIT,
    ) -> Any:
        """Execute a command and return what it returns.

        Raises:
            QmpError: the agent refused it.
            TimeoutError: no answer in time; open a new connection then.
        """
        self._lines.send({"execute": name, "arguments": dict(arguments or {})})
        message = self._lines.receive(time.monotonic() + timeout)
        if "error" in message:
            raise QmpError(name, message["error"])
        return message["return"]

    def sh(self, script: str, timeout: float = LIMIT) -> ShellResult:
        """Run a shell script in the guest to its end.

        Raises:
            TimeoutError: it did not end in time (and may still run).
        """
        arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self.command("guest-exec", arguments)["pid"]
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self.command("guest-exec-status", {"pid": pid})
            if status["exited"]:
                out, err = (
                    base64.b64decode(status.get(key, "")).decode(errors="replace")
                    for key in ("out-data", "err-data")
                )
                return ShellResult(int(status.get("exitcode", -1)), out, err)
            time.sleep(0.05)
        raise TimeoutError(f"in the guest still runs: {script}")
