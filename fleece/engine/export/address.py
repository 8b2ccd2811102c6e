"""Where clients of an export are let in: a unix socket, or TCP; by TLS, or from this host alone."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fleece.errors import TargetError, UsageError
from fleece.nbd.uri import unix_uri
from fleece.reach import LONGEST
from fleece.temporary import temporary_folder

_ADDRESS = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})")
_BACKLOG = 32


@dataclass(frozen=True)
class Doors:
    """Where clients are let in.

    Attributes:
        socket: path of the unix socket to make; None: one in a folder of its own.
        listen: ADDRESS:PORT of TCP instead; port 0 is a free one.
        tls: folder with ca-cert.pem, server-cert.pem and server-key.pem, as QEMU has them: clients
            must have a certificate of that authority. None: whoever reaches the port is let in.
    """

    socket: str | None = None
    listen: str | None = None
    tls: Path | None = None

    def check(self) -> None:
        """Raise `UsageError` if nobody, or anybody, could be let in so."""
        if self.listen is None:
            if self.tls is not None:
                raise UsageError("TLS has no effect on a unix socket", hint="--listen takes TCP")
            return
        if self.socket is not None:
            raise UsageError("--socket and --listen are two places", hint="leave one out")
        if self.tls is None and not all(_is_local(found) for found in _found(self.listen)):
            raise UsageError(
                "without TLS whoever reaches this address could read the disks",
                where=self.listen,
                hint="add --tls-x509, or listen on 127.0.0.1",
            )


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
        tls = None if doors.tls is None else _tls(doors.tls)
        with _tcp(doors.listen) as made:
            made.setblocking(False)
            host, port = doors.listen.rpartition(":")[0], made.getsockname()[1]
            scheme = "nbd" if tls is None else "nbds"
            yield Listening(made, f"{scheme}://{host}:{port}", None, tls)
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
            made.listen(_BACKLOG)
            yield made
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _tcp(text: str) -> socket.socket:
    family, _, _, _, place = _found(text)[0]
    try:
        return socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise TargetError(f"cannot be listened on ({error.strerror})", where=text) from error


def _found(text: str) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
    """What a TCP address means, as getaddrinfo(3) tells.

    Raises:
        UsageError: nothing.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise UsageError("--listen takes ADDRESS:PORT, like 127.0.0.1:10809", where=text)
    host = found[1] or found[2]
    try:
        return socket.getaddrinfo(host, int(found[3]), type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except OSError as error:
        raise UsageError(f"there is no such address ({error.strerror})", where=text) from error


def _is_local(found: tuple[socket.AddressFamily, int, int, str, tuple[str, int]]) -> bool:
    return ipaddress.ip_address(found[4][0]).is_loopback


def _tls(folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        made.load_verify_locations(folder / "ca-cert.pem")
        made.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    except OSError as error:
        raise UsageError(
            f"the certificates cannot be used ({error.strerror or error})",
            where=folder,
            hint="it needs ca-cert.pem, server-cert.pem and server-key.pem, as QEMU does",
        ) from error
    return made
