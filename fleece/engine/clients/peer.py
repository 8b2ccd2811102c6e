"""One end of a client's connection: nothing waits on it longer than it may, nor past the end."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

_CHUNK = 256 * 1024

T = TypeVar("T")


class Gone(Exception):
    """The other side left, makes no sense or took too long; or all connections end."""


class Peer:
    """A connected socket.

    Args:
        end: the socket.
        stop: a descriptor that can be read once all connections are to end.
        limit: seconds that all reads and writes may take together, until `allow` says more.
    """

    def __init__(self, end: socket.socket, stop: int, limit: float) -> None:
        end.setblocking(False)
        self.socket = end
        self.stop = stop
        self.allow(limit)

    def allow(self, limit: float) -> None:
        """So many seconds from now on."""
        self._until = time.monotonic() + limit

    def secure(self, tls: ssl.SSLContext) -> None:
        """Talk TLS from now on, as its server.

        Raises:
            Gone: the other side cannot, or may not.
        """
        try:
            secured = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            raise Gone from error
        self.socket = secured
        self._patiently(secured.do_handshake, select.POLLIN)

    def read(self, count: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            Gone: they do not come.
        """
        data = b""
        while len(data) < count:
            got = self.some(count - len(data))
            if not got:
                raise Gone
            data += got
        return data

    def some(self, most: int) -> bytes:
        """What has come, as soon as something has; nothing: the other side says no more.

        Raises:
            Gone: nothing comes.
        """
        return self._patiently(lambda: self.socket.recv(most), select.POLLIN)

    def write(self, data: bytes | memoryview) -> None:
        """All of it.

        Raises:
            Gone: it is not taken.
        """
        view = memoryview(data)
        while view:
            sent = self._patiently(lambda view=view: self.socket.send(view), select.POLLOUT)  # type: ignore[misc]
            view = view[sent:]

    def _patiently(self, attempt: Callable[[], T], event: int) -> T:
        while True:
            try:
                return attempt()
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(event)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise Gone from error

    def _wait(self, event: int) -> None:
        left = max(0.0, self._until - time.monotonic()) * 1000
        found = ready({self.socket.fileno(): event, self.stop: select.POLLIN}, left)
        if not found or self.stop in found:
            raise Gone


class _Flow:
    """What goes from one socket to another. It takes no more than the other one gives away."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source = source
        self._target = target
        self._room = memoryview(bytearray(_CHUNK))
        self._pending = self._room[:0]

    def advance(self) -> bool:
        """Move something; gives whether anything moved.

        Raises:
            Gone: one side has left.
        """
        try:
            if not self._pending:
                count = self._source.recv_into(self._room)
                if not count:
                    raise Gone
                self._pending = self._room[:count]
            self._pending = self._pending[self._target.send(self._pending) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise Gone from error
        return True

    def waits_for(self) -> tuple[int, int]:
        """The descriptor and event that let it go on."""
        if self._pending:
            return self._target.fileno(), select.POLLOUT
        return self._source.fileno(), select.POLLIN


def join(one: Peer, other: Peer) -> None:
    """Pass on all that either side sends, until one leaves or all connections end."""
    flows = _Flow(one.socket, other.socket), _Flow(other.socket, one.socket)
    with contextlib.suppress(Gone):
        while True:
            moved = True in [flow.advance() for flow in flows]
            events = {one.stop: select.POLLIN}
            for descriptor, event in () if moved else (flow.waits_for() for flow in flows):
                events[descriptor] = events.get(descriptor, 0) | event
            if one.stop in ready(events, 0 if moved else None):
                return


def ready(events: Mapping[int, int], limit: float | None = None) -> set[int]:
    """Wait until something happens at a descriptor; gives where.

    Args:
        events: of poll(2), by descriptor.
        limit: milliseconds; None: any time.
    """
    poll = select.poll()
    for descriptor, event in events.items():
        poll.register(descriptor, event)
    return {descriptor for descriptor, _ in poll.poll(limit)}
