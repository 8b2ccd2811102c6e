"""Where clients come in over TCP: an address as an option has it, and a certificate."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from fleece.errors import TargetError, UsageError

BACKLOG = 128
"""Connections that wait to be accepted; who comes then tries again a second later."""

_ADDRESS = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})")


@dataclass(frozen=True)
class TcpAddress:
    """ADDRESS:PORT; port 0 is a free one.

    Attributes:
        text: as it was given.
        option: that gave it.
    """

    text: str
    option: str

    @property
    def host(self) -> str:
        """Without the port; IPv6 is in brackets, as in a URI."""
        return self.text.rpartition(":")[0]

    def check_private(self, hint: str) -> None:
        """Refuse an address that others than this host's users can connect to.

        Args:
            hint: what to do about it.

        Raises:
            UsageError: it is one, or none at all.
        """
        if not all(ipaddress.ip_address(found[4][0]).is_loopback for found in self._found()):
            raise UsageError(
                "without TLS whoever reaches this address could read the disks",
                where=self.text,
                hint=hint,
            )

    def listen(self) -> socket.socket:
        """A new socket that listens there, and never blocks.

        Raises:
            TargetError: there can be none.
            UsageError: there is no such address.
        """
        family, _, _, _, place = self._found()[0]
        try:
            made = socket.create_server(place[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            what = f"cannot be listened on ({error.strerror})"
            raise TargetError(what, where=self.text) from error
        made.setblocking(False)
        return made

    def _found(self) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
        """What it means, as getaddrinfo(3) tells."""
        found = _ADDRESS.fullmatch(self.text)
        if found is None or int(found[3]) > 65535:
            what = f"{self.option} takes ADDRESS:PORT, like 127.0.0.1:10809"
            raise UsageError(what, where=self.text)
        host = found[1] or found[2]
        try:
            return socket.getaddrinfo(host, int(found[3]), type=socket.SOCK_STREAM)  # type: ignore[return-value]
        except OSError as error:
            what = f"there is no such address ({error.strerror})"
            raise UsageError(what, where=self.text) from error


def server_tls(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS by a server's certificate; clients need none.

    Raises:
        OSError: the files cannot be used, or the key has a passphrase.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(cert, key, password=lambda: b"")  # else OpenSSL asks the terminal
    return made
