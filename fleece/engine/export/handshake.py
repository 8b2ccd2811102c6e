"""The haggling of NBD (proto.md, "Newstyle negotiation"), between a client and a source's server.

The client sees the disks of the point by their names, and nothing else that the server has. The
server hears of no client that has not named one of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fleece.engine.clients.peer import Gone, Peer

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_HELLO, _MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_NO_ZEROES = 2
_FLAGS = 1 | _NO_ZEROES
"""Fixed newstyle, and no zeroes."""
_ZEROES = 124
"""Bytes at the end of the answer to the old way to name an export, after its size and flags."""

_EXPORT_NAME, _ABORT, _LIST, _STARTTLS, _INFO, _GO = 1, 2, 3, 5, 6, 7
_STRUCTURED, _LIST_META, _SET_META = 8, 9, 10
_ACK, _SERVER, _INFORMATION = 1, 2, 3
_IS_EXPORT, _IS_NAME = b"\0\0", b"\0\1"
"""What an information is of (NBD_INFO_EXPORT, NBD_INFO_NAME)."""
_ERROR = 1 << 31
_UNSUPPORTED, _INVALID, _TLS_FIRST, _UNKNOWN = (_ERROR + number for number in (1, 3, 5, 6))

_LONGEST = 64 * 1024
"""Bytes of an option: names and queries have 4096 at most (proto.md, "String values")."""
_MOST_OPTIONS = 64
_MOST_REPLIES = 4096


@dataclass(frozen=True)
class Way:
    """Where an export is in truth.

    Attributes:
        socket: path of the unix socket of its server.
        name: the server's name of it.
    """

    socket: str
    name: str


@dataclass(frozen=True)
class Option:
    """A client's request while it haggles."""

    number: int
    data: bytes


class Handshake:
    """One client's haggling.

    Args:
        client: the client.
        ways: to the exports, by the names that clients are told.
        dial: connects to a server's socket.
        secure: has the client talk TLS; None: it need not.
    """

    def __init__(
        self,
        client: Peer,
        ways: Mapping[str, Way],
        dial: Callable[[str], Peer],
        secure: Callable[[], None] | None,
    ) -> None:
        self._client = client
        self._ways = ways
        self._dial = dial
        self._secure = secure
        self._flags = 0
        self._structured = False
        self._servers: dict[str, Peer] = {}

    def agree(self) -> Peer:
        """Haggle to the end; gives the server, which from now on answers the client itself.

        Raises:
            Gone: the client left, or is none.
        """
        self._client.write(_GREETING.pack(_HELLO, _MAGIC, _FLAGS))
        (self._flags,) = struct.unpack(">I", self._client.read(4))
        if self._flags & ~_FLAGS or not self._flags & 1:
            raise Gone
        for _ in range(_MOST_OPTIONS):
            server = self._answer(self._next())
            if server is not None:
                return server
        raise Gone

    def _next(self) -> Option:
        magic, number, length = _OPTION.unpack(self._client.read(_OPTION.size))
        if magic != _MAGIC or length > _LONGEST:
            raise Gone
        return Option(number, self._client.read(length))

    def _answer(self, option: Option) -> Peer | None:
        """Answer an option; gives the server if the haggling is over."""
        if option.number == _ABORT:
            self._say(option, _ACK)
            raise Gone
        if self._secure is not None:
            self._start_tls(option)
        elif option.number == _LIST:
            self._list(option)
        elif option.number == _STRUCTURED:
            self._structured = True
            for server in self._servers.values():
                _agree_on_structure(server)
            self._say(option, _ACK)
        elif option.number == _EXPORT_NAME:
            return self._plainly(option)
        elif option.number in (_INFO, _GO, _LIST_META, _SET_META):
            return self._about_export(option)
        else:
            self._say(option, _INVALID if option.number == _STARTTLS else _UNSUPPORTED)
        return None

    def _start_tls(self, option: Option) -> None:
        """Nothing but TLS is talked of before it is there."""
        if option.number == _EXPORT_NAME:
            raise Gone
        if option.number != _STARTTLS or option.data:
            self._say(option, _INVALID if option.number == _STARTTLS else _TLS_FIRST)
            return
        self._say(option, _ACK)
        secure, self._secure = self._secure, None
        assert secure is not None
        secure()

    def _list(self, option: Option) -> None:
        for name in self._ways:
            raw = name.encode()
            self._say(option, _SERVER, struct.pack(">I", len(raw)) + raw)
        self._say(option, _ACK)

    def _plainly(self, option: Option) -> Peer:
        """Answer the old way to name an export, which says what the export is and no more.

        The server is asked in the new way: QEMU 7.2 crashes, and its guest with it, when a client
        asks in the old one and is gone before the answer (SIGSEGV, of qemu-nbd as of a machine).
        """
        way = self._way(option.data)
        if way is None:
            raise Gone
        server, name = self._server(way.socket), way.name.encode()
        _send(server, _GO, struct.pack(">I", len(name)) + name + bytes(2))
        export, kind, data = b"", 0, b""
        while kind != _ACK:
            _, kind, data = _reply(server)
            if kind & _ERROR:
                raise Gone
            if kind == _INFORMATION and data[:2] == _IS_EXPORT:
                export = data[2:]
        self._client.write(export + bytes(0 if self._flags & _NO_ZEROES else _ZEROES))
        return server

    def _about_export(self, option: Option) -> Peer | None:
        """Pass on what names an export; gives the server if it gives the export."""
        end = 4 + int.from_bytes(option.data[:4], "big")
        if end > len(option.data):
            self._say(option, _INVALID)
            return None
        shown = option.data[4:end]
        way = self._way(shown)
        if way is None:
            self._say(option, _UNKNOWN)
            return None
        server, name = self._server(way.socket), way.name.encode()
        _send(server, option.number, struct.pack(">I", len(name)) + name + option.data[end:])
        agreed = self._pass_replies(server, shown)
        return server if agreed and option.number == _GO else None

    def _way(self, raw: bytes) -> Way | None:
        """To an export; None: the client asks for what is not shown to it."""
        text = raw.decode(errors="replace")
        if not text and len(self._ways) == 1:
            return next(iter(self._ways.values()))
        return self._ways.get(text)

    def _pass_replies(self, server: Peer, shown: bytes) -> bool:
        """Pass on a server's replies; gives whether it agreed.

        Args:
            server: was asked for something.
            shown: the client's name of the export.
        """
        for _ in range(_MOST_REPLIES):
            number, kind, data = _reply(server)
            if kind == _INFORMATION and data[:2] == _IS_NAME:
                data = data[:2] + shown
            self._client.write(_REPLY.pack(_REPLY_MAGIC, number, kind, len(data)) + data)
            if kind == _ACK or kind & _ERROR:
                return kind == _ACK
        raise Gone

    def _server(self, path: str) -> Peer:
        """A server, connected to when it is first needed, and told what the client agreed to."""
        if path not in self._servers:
            server = self._dial(path)
            hello, magic, flags = _GREETING.unpack(server.read(_GREETING.size))
            if (hello, magic) != (_HELLO, _MAGIC) or self._flags & ~flags:
                raise Gone
            server.write(struct.pack(">I", self._flags))
            if self._structured:
                _agree_on_structure(server)
            self._servers[path] = server
        return self._servers[path]

    def _say(self, option: Option, kind: int, data: bytes = b"") -> None:
        self._client.write(_REPLY.pack(_REPLY_MAGIC, option.number, kind, len(data)) + data)


def _agree_on_structure(server: Peer) -> None:
    _send(server, _STRUCTURED, b"")
    if _reply(server)[1] != _ACK:
        raise Gone


def _send(server: Peer, number: int, data: bytes) -> None:
    server.write(_OPTION.pack(_MAGIC, number, len(data)) + data)


def _reply(server: Peer) -> tuple[int, int, bytes]:
    """A server's next reply: the option's number, its kind, its data."""
    magic, number, kind, length = _REPLY.unpack(server.read(_REPLY.size))
    if magic != _REPLY_MAGIC or length > _LONGEST:
        raise Gone
    return number, kind, server.read(length)
