"""One request and its answer: sent once, and what the network does to it told as one error."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead

from fleece.cancel import CancelToken
from fleece.errors import StoreError
from fleece.hashing import Buffer
from fleece.store.s3.client.endpoint import Server
from fleece.store.s3.client.pool import Pool
from fleece.store.s3.client.problems import Again
from fleece.store.s3.client.wire import Watch, Wire

_SLOWEST = 16 << 10
"""Bytes a second that a connection must reach, lest it counts as one that hangs."""


@dataclass(frozen=True)
class Ask:
    """A request as it is sent.

    Attributes:
        method: of HTTP.
        path: and query, encoded.
        headers: the signed ones.
        body: what is sent.
        most: bytes of the answer.
        silence: seconds of it that are borne.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Buffer
    most: int
    silence: float


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: of HTTP.
        headers: by names in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(pool: Pool, ask: Ask, cancel: CancelToken, where: str) -> Answer:
    """Send a request and read its answer.

    Args:
        pool: the connections.
        ask: the request.
        cancel: ends it: the connection is closed at once.
        where: for messages.

    Raises:
        Again: the network failed, on the way there or back.
        Interrupted: the run was cancelled.
        StoreError: the answer is larger than it may be, or the server's certificate is not good.
    """
    server = pool.server
    moving = len(memoryview(ask.body)) + ask.most
    watch = Watch(cancel, ask.silence + moving / _SLOWEST, ask.silence)
    met = False
    try:
        with pool.connection(watch) as wire:
            met = True
            return _through(pool, wire, ask, where)
    except socket.gaierror as error:
        raise _unknown(error, server, where) from error
    except ssl.SSLCertVerificationError as error:
        hint = "set AWS_CA_BUNDLE to the file of the authority that signed it"
        what = f"the certificate of {server} is not good ({error.verify_message})"
        raise StoreError(what, where=where, hint=hint) from error
    except (OSError, HTTPException) as error:
        raise Again(_cut(error, server, where, met=met), lost=met, met=met) from error


def _through(pool: Pool, wire: Wire, ask: Ask, where: str) -> Answer:
    """Send and receive on one connection, which is dropped if it cannot be used again."""
    _send(pool, wire, ask)
    response = HTTPResponse(wire, method=ask.method)  # type: ignore[arg-type]
    response.begin()
    headers = {name.lower(): text for name, text in response.headers.items()}
    length = response.length
    if length is not None and length > ask.most:
        raise StoreError(f"the server answers with {length} bytes, too many", where=where)
    body = response.read() if length is not None else response.read(ask.most + 1)
    if length is None and len(body) > ask.most:
        raise StoreError("the server's answer does not end", where=where)
    if response.will_close:
        wire.drop()
    return Answer(response.status, headers, body)


def _send(pool: Pool, wire: Wire, ask: Ask) -> None:
    length = len(memoryview(ask.body))
    headers = {
        "Host": pool.server.name,
        "Accept-Encoding": "identity",
        "Content-Length": str(length),
        **pool.proxy_headers,
        **ask.headers,
    }
    lines = [f"{ask.method} {pool.through}{ask.path} HTTP/1.1"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("ascii")
    try:
        # Bytes of a small body go along, so that there is one packet, and one answer to it.
        if length <= 1024:
            wire.sendall(head + bytes(ask.body))
        else:
            wire.sendall(head)
            wire.sendall(ask.body)
    except (BrokenPipeError, ConnectionResetError):
        # A server that refuses before it has read all says so, and closes: hear what it said.
        if not wire.heard:
            raise


def _unknown(error: socket.gaierror, server: Server, where: str) -> Exception:
    what = f"the name {server.host} cannot be found ({error.strerror})"
    found = StoreError(what, where=where, hint="check AWS_ENDPOINT_URL and the resolver")
    return Again(found, lost=False, met=False)


def _cut(error: Exception, server: Server, where: str, *, met: bool) -> StoreError:
    if isinstance(error, TimeoutError) and not error.errno:
        hint = "a server that hangs, or whose disks are full, does not answer"
        return StoreError(f"{server} {error}", where=where, hint=hint)
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, IncompleteRead):
        said = f"the answer ends after {len(error.partial)} bytes"
    if met:
        return StoreError(f"the connection to {server} broke ({said})", where=where)
    hint = "check AWS_ENDPOINT_URL, and that the server runs"
    return StoreError(f"{server} cannot be reached ({said})", where=where, hint=hint)
