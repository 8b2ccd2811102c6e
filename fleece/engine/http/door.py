"""Where HTTP clients come in: over TCP, by TLS, or from this host alone."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.engine.clients.tcp import TcpAddress, server_tls
from fleece.errors import UsageError


@dataclass(frozen=True)
class HttpDoor:
    """Where HTTP clients are let in. Who has a disk's URL can read it: a secret is in it.

    Attributes:
        listen: ADDRESS:PORT; port 0 is a free one.
        cert: the server's certificate, PEM, with those between it and the authority that clients
            trust; None: no TLS.
        key: its key, PEM, without a passphrase.
    """

    listen: str
    cert: Path | None = None
    key: Path | None = None

    @property
    def address(self) -> TcpAddress:
        """Of `listen`."""
        return TcpAddress(self.listen, "--http")

    def check(self) -> None:
        """Raise `UsageError` if anybody on the way could read the disks."""
        if (self.cert is None) != (self.key is None):
            raise UsageError("--tls-cert and --tls-key go together", hint="add the other one")
        if self.cert is None:
            self.address.check_private("add --tls-cert and --tls-key, or listen on 127.0.0.1")


@dataclass(frozen=True)
class HttpListening:
    """A socket that HTTP clients connect to.

    Attributes:
        socket: listens, and never blocks.
        root: the URL of it.
        tls: what it talks; None: none.
    """

    socket: socket.socket
    root: str
    tls: ssl.SSLContext | None


@contextlib.contextmanager
def http_listening(door: HttpDoor) -> Iterator[HttpListening]:
    """Listen; the socket is gone when the context ends.

    Raises:
        TargetError: it cannot be listened there.
        UsageError: it makes no sense so, the certificate cannot be used, or h11 is missing.
    """
    _check_library()
    door.check()
    tls = None if door.cert is None or door.key is None else _tls(door.cert, door.key)
    with door.address.listen() as made:
        scheme = "http" if tls is None else "https"
        root = f"{scheme}://{door.address.host}:{made.getsockname()[1]}"
        yield HttpListening(made, root, tls)


def _check_library() -> None:
    try:
        import h11  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "HTTP is talked by the Python package h11, which is missing",
            hint="install python3-h11, or 'pip install fleece-backup[http]'",
        ) from error


def _tls(cert: Path, key: Path) -> ssl.SSLContext:
    try:
        return server_tls(cert, key)
    except OSError as error:
        raise UsageError(
            f"the certificate cannot be used ({error.strerror or error})",
            where=cert,
            hint="--tls-cert and --tls-key take PEM files that belong together, without passphrase",
        ) from error
