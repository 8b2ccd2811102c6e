"""Connections to one server: kept between requests, so many at most, and none after a fork."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse

from fleece.errors import UsageError
from fleece.store.s3.client.settings import Settings
from fleece.store.s3.client.wire import Watch, Wire

MOST = 32
"""Connections at once. Who wants more waits for one."""

_TICK = 0.2


class Pool:
    """The connections to a server.

    Args:
        settings: how it is reached.

    Attributes:
        server: it.
    """

    def __init__(self, settings: Settings) -> None:
        self.server = settings.endpoint.server
        self._proxy = settings.proxy
        self._context = _context(settings) if self.server.secure else None
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._idle: list[Wire] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST)

    @property
    def through(self) -> str:
        """What a path begins with in a request: a proxy is told the whole URL."""
        return str(self.server) if self._proxy and not self.server.secure else ""

    @property
    def proxy_headers(self) -> dict[str, str]:
        """What a proxy must be told with each request that it sees."""
        return self._authorization() if self.through else {}

    @contextlib.contextmanager
    def connection(self, watch: Watch) -> Iterator[Wire]:
        """A connection for one exchange.

        It is kept if the block ends well and has not dropped it.

        Raises:
            Interrupted: the run was cancelled.
            OSError: the server cannot be reached.
        """
        if self._owner != os.getpid():
            self._forget()
        free = self._free
        while not free.acquire(timeout=_TICK):
            watch.cancel.check()
        try:
            watch.begin()
            wire = self._kept() or self._made(watch)
            wire.watch = watch
            try:
                yield wire
            except BaseException:
                wire.drop()
                raise
            self._keep(wire)
        finally:
            free.release()

    def close(self) -> None:
        """Close all that are not used now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.drop()

    def _forget(self) -> None:
        """In a child: what was open is the parent's; its lock may be held for ever."""
        idle = self._idle
        self._reset()
        for wire in idle:
            wire.drop()

    def _kept(self) -> Wire | None:
        """One that still stands; the one that was used last, so that those in excess end."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                wire = self._idle.pop()
            if not wire.heard:
                return wire
            wire.drop()

    def _keep(self, wire: Wire) -> None:
        if wire.dropped:
            return
        with self._lock:
            self._idle.append(wire)

    def _made(self, watch: Watch) -> Wire:
        first = self._proxy.server if self._proxy else self.server
        wire = Wire(first.host, first.port, watch)
        try:
            if self._context is not None:
                if self._proxy:
                    self._tunnel(wire)
                wire.secure(self._context, self.server.host)
        except BaseException:
            wire.drop()
            raise
        return wire

    def _authorization(self) -> dict[str, str]:
        if self._proxy is None or self._proxy.user is None:
            return {}
        word = base64.b64encode(self._proxy.user.encode()).decode()
        return {"Proxy-Authorization": f"Basic {word}"}

    def _tunnel(self, wire: Wire) -> None:
        """Ask the proxy for a way to the server.

        Raises:
            OSError: it refuses.
        """
        target = f"{self.server.host}:{self.server.port}"
        headers = {"Host": target} | self._authorization()
        lines = [f"CONNECT {target} HTTP/1.1", *(f"{a}: {b}" for a, b in headers.items())]
        wire.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = HTTPResponse(wire, method="CONNECT")  # type: ignore[arg-type]
        try:
            answer.begin()
        except HTTPException as error:
            raise ConnectionError(f"the proxy answers what is no HTTP ({error!r})") from error
        if answer.status != HTTPStatus.OK:
            raise ConnectionError(f"the proxy refuses ({answer.status} {answer.reason})")


def _context(settings: Settings) -> ssl.SSLContext:
    """Who is trusted.

    Raises:
        UsageError: the file of the authorities cannot be read.
    """
    given = settings.authorities
    if given is None:
        return ssl.create_default_context()
    try:
        if os.path.isdir(given):
            return ssl.create_default_context(capath=given)
        return ssl.create_default_context(cafile=given)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"cannot be read as certificates ({error})", where=f"AWS_CA_BUNDLE {given}"
        ) from error
