"""The journal of systemd: entries with fields, for a run whose standard error goes there.

systemd.exec(5) tells $JOURNAL_STREAM, and systemd's "Native Journal Protocol" what is sent. It is a
datagram of lines; python3-systemd would do the same, but is on no package index without a C
compiler and is in no virtual environment.
"""

from __future__ import annotations

import os
import socket
import struct
from enum import IntEnum
from typing import TextIO

_SOCKET = "/run/systemd/journal/socket"
_LONGEST = 16 << 10
"""Bytes of a field: all of an entry fit into a datagram."""


class Priority(IntEnum):
    """How much an entry matters (syslog(3))."""

    FAILED = 3
    WARNING = 4
    TOLD = 6


class Journal:
    """Where entries go.

    Args:
        place: of its socket.
    """

    def __init__(self, place: str = _SOCKET) -> None:
        self._place = place

    @staticmethod
    def behind(stream: TextIO) -> Journal | None:
        """The journal, if it is what a stream goes to."""
        try:
            found = os.fstat(stream.fileno())
        except (OSError, ValueError):
            return None
        named = os.environ.get("JOURNAL_STREAM")
        return Journal() if named == f"{found.st_dev}:{found.st_ino}" else None

    def tell(self, message: str, priority: Priority, **fields: object) -> bool:
        """Send an entry.

        Args:
            message: for people.
            priority: how much it matters.
            fields: what else is in it, by names of capitals; None is left out.

        Returns:
            Whether the journal took it; if not, somebody else must be told.
        """
        head = {"MESSAGE": message, "PRIORITY": int(priority), "SYSLOG_IDENTIFIER": "fleece"}
        told = {name: value for name, value in (head | fields).items() if value is not None}
        entry = b"".join(_field(name, str(value)) for name, value in told.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.sendto(entry, socket.MSG_NOSIGNAL, self._place)
        except OSError:
            return False
        return True


def _field(name: str, text: str) -> bytes:
    data = text.encode(errors="replace")[:_LONGEST]
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
