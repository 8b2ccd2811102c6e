"""A server before a real one that does what a script says, as no real one does on demand."""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.rig.process import LIMIT


@dataclass(frozen=True)
class Asked:
    """A request that came.

    Attributes:
        number: how many came before it.
        method: of HTTP.
        path: and query.
        headers: by names in lower case.
        body: all of it.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Say:
    """Answer so, and pass nothing on."""

    status: int
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """As S3 words it."""
        text = f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>"
        return text.encode() if self.code else b""


@dataclass(frozen=True)
class Lose:
    """Pass it on, and end the connection instead of answering."""


@dataclass(frozen=True)
class Cut:
    """Pass it on, and end the connection after so many bytes of the answer's body."""

    count: int


@dataclass(frozen=True)
class Hang:
    """Never answer."""


Deed = Say | Lose | Cut | Hang | None
"""What is done about a request; None: it is passed on, and its answer comes back."""


class _Server(ThreadingHTTPServer):
    """One that does not complain about clients that went."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ScriptedS3:
    """The server; a context.

    Args:
        upstream: port of the real one on this host; None: there is none, and nothing is passed on.
        script: says what is done about a request.
        context: to speak TLS with.

    Attributes:
        port: that it listens at.
        asked: all that came.
        hung_up: is set when a client leaves a request that hangs.
    """

    def __init__(
        self,
        upstream: int | None,
        script: Callable[[Asked], Deed],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._upstream = upstream
        self._script = script
        self._lock = threading.Lock()
        self.asked: list[Asked] = []
        self.hung_up = threading.Event()
        self.hanging = threading.Event()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _any(self) -> None:
                scripted._serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> ScriptedS3:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): text for name, text in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length", "0")))
        with self._lock:
            asked = Asked(len(self.asked), handler.command, handler.path, headers, body)
            self.asked.append(asked)
        deed = self._script(asked)
        if isinstance(deed, Say):
            return _answer(handler, deed.status, dict(deed.headers), deed.body)
        if isinstance(deed, Hang):
            return self._hang(handler)
        try:
            status, answered, content = self._passed(asked)
        except (OSError, http.client.HTTPException):  # the real one is not there
            return _end(handler)
        if isinstance(deed, Lose):
            return _end(handler)
        _answer(handler, status, answered, content, None if deed is None else deed.count)
        if deed is not None:
            _end(handler)
        return None

    def _hang(self, handler: BaseHTTPRequestHandler) -> None:
        self.hanging.set()
        handler.connection.settimeout(LIMIT)
        with suppress(OSError):
            handler.connection.recv(1)  # it ends when the client closes
        self.hung_up.set()
        handler.close_connection = True

    def _passed(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        assert self._upstream is not None
        there = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=LIMIT)
        try:
            there.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, text in asked.headers.items():
                there.putheader(name, text)
            there.endheaders(asked.body)
            answer = there.getresponse()
            content = answer.read()
        finally:
            there.close()
        left_out = {"content-length", "transfer-encoding", "connection"}
        headers = {a: b for a, b in answer.getheaders() if a.lower() not in left_out}
        if asked.method == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length", "0")
        return answer.status, headers, content


def _answer(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes,
    count: int | None = None,
) -> None:
    handler.send_response_only(status)
    for name, text in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, text)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[:count])


def _end(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
