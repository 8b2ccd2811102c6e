"""The messages of the store protocol: what a fleece at the other end of a stream is asked and says.

A message is a JSON object and some bytes, both after their lengths. The other side is not trusted:
lengths are bounded before anything is read, and each value is of the type that it must be, or the
message is an error (docs/internals/store-protocol.rst).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

from fleece.errors import StoreError

GREETING = b"fleece store protocol 1\n"
"""What the serving side says first."""

LENGTHS = struct.Struct("<II")
"""Bytes of the JSON text, and of what follows it."""

MAX_TEXT = 1 << 20
MAX_DATA = 8 << 20
PIECE = 1 << 20
"""Bytes that are written in one message."""

PAGE = 4096
"""Names in one message."""

_LONGEST = 4096


class WireError(StoreError):
    """A message is not what it must be, or not what was asked for."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the store protocol is not kept: {what}")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        said: the JSON object.
        data: what followed it.
    """

    said: dict[str, object]
    data: bytes = b""

    def text(self, name: str) -> str:
        """A text."""
        found = self.said.get(name)
        if not isinstance(found, str) or len(found) > _LONGEST:
            raise WireError(f"{name} is no text")
        return found

    def number(self, name: str) -> int:
        """A number, from 0 on."""
        found = self.said.get(name)
        if type(found) is not int or not 0 <= found < 1 << 63:
            raise WireError(f"{name} is no number")
        return found

    def flag(self, name: str) -> bool:
        """True or false."""
        found = self.said.get(name)
        if type(found) is not bool:
            raise WireError(f"{name} is neither true nor false")
        return found

    def maybe(self, name: str) -> int | None:
        """A number, or null."""
        return None if self.said.get(name) is None else self.number(name)

    def names(self, name: str) -> list[str]:
        """A list of texts."""
        found = self.said.get(name)
        if not isinstance(found, list):
            raise WireError(f"{name} is no list")
        return [Message({"": one}).text("") for one in found]


def packed(message: Message) -> bytes:
    """A message as it is sent."""
    text = json.dumps(message.said, separators=(",", ":")).encode()
    if len(text) > MAX_TEXT or len(message.data) > MAX_DATA:
        raise WireError("a message is too long")
    return b"".join((LENGTHS.pack(len(text), len(message.data)), text, message.data))


def received(read: Callable[[int], bytes]) -> Message:
    """The next message.

    Args:
        read: gives exactly so many bytes.

    Raises:
        WireError: it is none.
    """
    text, data = LENGTHS.unpack(read(LENGTHS.size))
    if text > MAX_TEXT or data > MAX_DATA:
        raise WireError("a message is too long")
    try:
        said = json.loads(read(text))
    except (ValueError, RecursionError) as error:
        raise WireError("a message is no JSON") from error
    if not isinstance(said, dict):
        raise WireError("a message is no JSON object")
    return Message(said, read(data))
