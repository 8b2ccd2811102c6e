"""Where clients of an export are let in: a unix socket, or TCP; by TLS, or from this host alone."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fleece.engine.clients.tcp import BACKLOG, TcpAddress, server_tls
from fleece.errors import TargetError, UsageError
from fleece.nbd.uri import unix_uri
from fleece.reach import LONGEST
from fleece.temporary import temporary_folder

_SHORTEST_KEY = 16
"""Bytes."""
_CIPHERS = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256"


@dataclass(frozen=True)
class Doors:
    """Where clients are let in.

    Attributes:
        socket: path of the unix socket to make; None: one in a folder of its own.
        listen: ADDRESS:PORT of TCP instead; port 0 is a free one.
        x509: TLS by this folder with ca-cert.pem, server-cert.pem and server-key.pem, as QEMU has
            them: clients must have a certificate of that authority.
        psk: TLS by this file of keys, a line USER:HEX each, as psktool writes it. Without either,
            whoever reaches the port is let in.
    """

    socket: str | None = None
    listen: str | None = None
    x509: Path | None = None
    psk: Path | None = None

    @property
    def open(self) -> bool:
        """Whether nobody is asked who he is."""
        return self.x509 is None and self.psk is None

    @property
    def address(self) -> TcpAddress:
        """Of `listen`."""
        return TcpAddress(self.listen or "", "--listen")

    def check(self) -> None:
        """Raise `UsageError` if nobody, or anybody, could be let in so."""
        if self.listen is None:
            if not self.open:
                raise UsageError("TLS has no effect on a unix socket", hint="--listen takes TCP")
            return
        if self.x509 is not None and self.psk is not None:
            raise UsageError("certificates and keys are two ways", hint="leave one out")
        if self.socket is not None:
            raise UsageError("--socket and --listen are two places", hint="leave one out")
        if self.open:
            self.address.check_private("add --tls-x509 or --tls-psk, or listen on 127.0.0.1")


@dataclass(frozen=True)
class Listening:
    """A socket that clients connect to.

    Attributes:
        socket: listens, and never blocks.
        root: the URI of it up to the export's name; None: it is a unix socket.
        path: of the unix socket.
        tls: who is let in; None: everybody.
    """

    socket: socket.socket
    root: str | None
    path: str | None
    tls: ssl.SSLContext | None

    def uri(self, name: str) -> str:
        """Of an export."""
        if self.path is not None:
            return unix_uri(self.path, name)
        return f"{self.root}/{quote(name, safe='')}"


@contextlib.contextmanager
def listening(doors: Doors) -> Iterator[Listening]:
    """Listen; the socket is gone when the context ends.

    Raises:
        TargetError: the socket cannot be made.
        UsageError: the certificates cannot be used.
    """
    if doors.listen is not None:
        tls = _tls(doors)
        with doors.address.listen() as made:
            scheme = "nbd" if tls is None else "nbds"
            root = f"{scheme}://{doors.address.host}:{made.getsockname()[1]}"
            yield Listening(made, root, None, tls)
        return
    with contextlib.ExitStack() as stack:
        if doors.socket is None:
            path = str(stack.enter_context(temporary_folder()) / "nbd")
        else:
            path = os.path.abspath(doors.socket)
        yield Listening(stack.enter_context(_unix(path)), None, path, None)


@contextlib.contextmanager
def _unix(path: str) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > LONGEST:
        raise TargetError(f"the socket's path is longer than {LONGEST} bytes", where=path)
    with socket.socket(socket.AF_UNIX) as made:
        made.setblocking(False)
        try:
            made.bind(path)
        except OSError as error:
            taken = os.path.lexists(path)
            raise TargetError(
                "exists already" if taken else f"the socket cannot be made ({error.strerror})",
                where=path,
                hint="remove it if nothing listens there" if taken else None,
            ) from error
        try:
            os.chmod(path, 0o600)  # before anybody can connect
            made.listen(BACKLOG)
            yield made
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _tls(doors: Doors) -> ssl.SSLContext | None:
    if doors.x509 is not None:
        return _by_certificates(doors.x509)
    return None if doors.psk is None else _by_keys(doors.psk)


def _by_certificates(folder: Path) -> ssl.SSLContext:
    try:
        made = server_tls(folder / "server-cert.pem", folder / "server-key.pem")
        made.load_verify_locations(folder / "ca-cert.pem")
    except OSError as error:
        raise UsageError(
            f"the certificates cannot be used ({error.strerror or error})",
            where=folder,
            hint="it needs ca-cert.pem, server-cert.pem and server-key.pem, as QEMU does",
        ) from error
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def _by_keys(file: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    take = getattr(made, "set_psk_server_callback", None)
    if take is None:
        raise UsageError("TLS by keys needs Python 3.13", hint="--tls-x509 works with any")
    try:
        lines = [line.partition(":") for line in file.read_text().splitlines()]
        keys = {user: bytes.fromhex(key) for user, _, key in lines if user}
    except (OSError, ValueError) as error:
        raise UsageError(f"the keys cannot be read ({error})", where=file) from error
    if not all(len(key) >= _SHORTEST_KEY for key in keys.values()) or not keys:
        raise UsageError("it has no key, or one that is too short", where=file)
    # Python has keys for TLS 1.2 alone. By default that would be with no forward secrecy, and the
    # whole family has ciphers that hide nothing.
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(_CIPHERS)
    take(lambda user: keys.get(user or "", b""))
    return made
