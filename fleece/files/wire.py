"""How the two processes talk: frames of a JSON object and a blob, over a socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MOST_BLOB = 1 << 20
"""Bytes of the largest blob, and so of the largest single read of the disk."""

PAGE = 4096
"""Entries of a folder that the reader tells before it asks whether more are wanted."""

_MOST_HEAD = 1 << 18
_SIZES = struct.Struct(">II")

Head = dict[str, Any]


class WireError(Exception):
    """The other side is gone, or talks nonsense."""


class Wire:
    """One side of the line.

    Args:
        line: a connected stream socket. If it has a time limit, `idle` is called whenever nothing
            came or went for that long.
        idle: may raise, which ends the waiting.
    """

    def __init__(self, line: socket.socket, idle: Callable[[], None] = lambda: None) -> None:
        self._line = line
        self._idle = idle

    def send(self, head: Head, blob: bytes | bytearray | memoryview = b"") -> None:
        """Send one frame.

        Raises:
            WireError: the other side is gone.
        """
        text = json.dumps(head).encode()
        if len(text) > _MOST_HEAD or len(blob) > MOST_BLOB:
            raise WireError("a message is too long")
        for part in (_SIZES.pack(len(text), len(blob)) + text, blob):
            self._send_all(memoryview(part))

    def _send_all(self, view: memoryview) -> None:
        while len(view):
            try:
                view = view[self._line.send(view) :]
            except TimeoutError:
                self._idle()
            except OSError as error:
                raise WireError(f"the other side is gone ({error.strerror})") from error

    def receive(self) -> tuple[Head, bytearray]:
        """Wait for one frame.

        Raises:
            WireError: the other side is gone, or what it sent is no frame.
        """
        text, blob = _SIZES.unpack(self._exactly(_SIZES.size))
        if text > _MOST_HEAD or blob > MOST_BLOB:
            raise WireError("a message is too long")
        try:
            head = json.loads(self._exactly(text))
        except ValueError as error:
            raise WireError("a message is not JSON") from error
        if not isinstance(head, dict):
            raise WireError("a message is not a JSON object")
        return head, self._exactly(blob)

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while len(view):
            try:
                got = self._line.recv_into(view)
            except TimeoutError:
                self._idle()
                continue
            except OSError as error:
                raise WireError(f"the other side is gone ({error.strerror})") from error
            if got == 0:
                raise WireError("the other side is gone")
            view = view[got:]
        return data
