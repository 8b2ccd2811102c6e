"""One connection to a server, whose every wait ends with the run, and after so long.

A socket's calls are begun again by Python after a signal, and no library for HTTP asks a flag
meanwhile. So the waits are short ones here, and `http.client` reads its answers out of this.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from fleece.cancel import CancelToken
from fleece.hashing import Buffer

_TICK = 0.2
_BUFFER = 64 << 10
_CONNECT = 10.0
"""Seconds for one address to accept a connection."""

Addresses = list[tuple[int, int, int, str, Any]]


class Watch:
    """What ends a wait: the run, too long a silence, or the whole having taken too long.

    Args:
        cancel: ends it.
        whole: seconds for the exchange.
        idle: seconds without a byte.

    Raises:
        Interrupted: by `check`, after `cancel`.
        TimeoutError: by `check`, when the time is up.
    """

    def __init__(self, cancel: CancelToken, whole: float, idle: float) -> None:
        self.cancel = cancel
        self._idle = idle
        self._whole = whole
        self.begin()

    def begin(self) -> None:
        """The time counts from now: it was waited for a connection before."""
        self._last = time.monotonic()
        self._until = self._last + self._whole

    def moved(self) -> None:
        """Bytes were sent or received."""
        self.cancel.check()
        self._last = time.monotonic()
        if self._last > self._until:
            raise TimeoutError("takes too long")

    def check(self) -> None:
        """Nothing has moved for a while."""
        self.cancel.check()
        now = time.monotonic()
        if now - self._last > self._idle or now > self._until:
            raise TimeoutError("does not answer")


class Wire(io.RawIOBase):
    """A connected socket, as `http.client` wants one. `drop` alone closes it.

    Attributes:
        watch: of the exchange that it is used for.
    """

    def __init__(self, host: str, port: int, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self._socket = connected(host, port, watch)
        self._socket.settimeout(_TICK)

    @property
    def dropped(self) -> bool:
        """Whether `drop` was called."""
        return self._socket.fileno() < 0

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Go on in TLS.

        Raises:
            ssl.SSLError: the server's certificate is not good for its name, or it speaks none.
        """
        made = context.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        self._socket = made
        while True:
            try:
                return made.do_handshake()
            except TimeoutError:
                self.watch.check()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Receive what has come, at least a byte; 0: the server has ended."""
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                self.watch.check()
            else:
                self.watch.moved()
                return count

    def sendall(self, data: Buffer) -> None:
        """Send all of it."""
        view = memoryview(data).cast("B")
        while len(view):
            try:
                count = self._socket.send(view)
            except TimeoutError:
                self.watch.check()
            else:
                self.watch.moved()
                view = view[count:]

    def makefile(self, mode: str) -> io.BufferedReader:
        """What an answer is read from."""
        return io.BufferedReader(self, _BUFFER)

    @property
    def heard(self) -> bool:
        """Whether something has come, or the server has ended: of an idle one, it is stale."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Nothing: an answer that was read closes what it was read from."""

    def drop(self) -> None:
        """Close the connection, without a word: after a fork it is somebody else's too."""
        descriptor = self._socket.detach()
        if descriptor >= 0:
            os.close(descriptor)


def connected(host: str, port: int, watch: Watch) -> socket.socket:
    """Connect to a host, by the first of its addresses that accepts.

    Raises:
        Interrupted: the run was cancelled.
        OSError: none does (that of the last one), or the name is not known.
    """
    last: OSError | None = None
    for family, kind, protocol, _, address in _addresses(host, port, watch):
        try:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            last = error
            continue
        try:
            _connect(made, address, watch)
        except OSError as error:
            made.close()
            last = error
        except BaseException:
            made.close()
            raise
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return made
    raise last or OSError(errno.EADDRNOTAVAIL, "the name has no address")


def _connect(made: socket.socket, address: Any, watch: Watch) -> None:
    failure = made.connect_ex(address)
    if failure == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(made, select.POLLOUT)
        until = time.monotonic() + _CONNECT
        while not poll.poll(_TICK * 1000):
            watch.check()
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        failure = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def _addresses(host: str, port: int, watch: Watch) -> Addresses:
    """The addresses of a host. The system's resolver hears no signal, so a thread waits for it.

    It is left behind if the run ends first; it does not keep the process.
    """

    def numeric() -> Addresses:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # type: ignore[return-value]

    def named() -> Addresses:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]

    with contextlib.suppress(socket.gaierror):
        return numeric()
    return _aside(named, watch)


def _aside(work: Callable[[], Addresses], watch: Watch) -> Addresses:
    done: queue.SimpleQueue[Addresses | OSError] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except OSError as error:
            done.put(error)

    threading.Thread(target=run, daemon=True, name="fleece-resolver").start()
    while True:
        try:
            found = done.get(timeout=_TICK)
        except queue.Empty:
            watch.check()
        else:
            if isinstance(found, OSError):
                raise found
            return found
