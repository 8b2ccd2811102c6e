"""An NBD server of any behaviour: true to the protocol but for one fault.

Fixed newstyle negotiation with structured replies, simple otherwise (the NBD project's proto.md).
"""

from __future__ import annotations

import enum
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleece.nbd.uri import unix_uri

_MAGIC = b"NBDMAGIC"
_OPTION = b"IHAVEOPT"
_REPLY = 0x3E889045565A9
_REQUEST = 0x25609513
_SIMPLE = 0x67446698
_STRUCTURED = 0x668E33EF

_EXPORT_NAME, _ABORT, _INFO, _GO, _STRUCTURED_REPLY, _SET_CONTEXT = 1, 2, 6, 7, 8, 10
_ACK, _SERVER, _INFO_REPLY, _META = 1, 2, 3, 4
_UNSUPPORTED = (1 << 31) + 1
_READ, _WRITE, _DISC, _FLUSH, _TRIM, _CACHE, _ZEROES, _STATUS = range(8)
_FLAGS = 1 | 4 | 32 | 64 | 256
"""Has flags, flush, trim, write zeroes, multi-conn."""


class Phase(enum.StrEnum):
    """Where a fault is put in: what the server says next."""

    GREETING = "greeting"
    STRUCTURED = "structured"
    CONTEXT = "context"
    GO = "go"
    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    STATUS = "status"
    ZEROES = "zeroes"
    LEAVE = "leave"


class Hang(Exception):
    """Say nothing more, and stay connected."""


class Cut(Exception):
    """End the connection."""


@dataclass
class Fault:
    """A fault.

    Attributes:
        phase: where.
        kind: what: one of `KINDS`.
        skip: how often the phase goes well before.
    """

    phase: Phase
    kind: str
    skip: int = 0

    def __str__(self) -> str:
        return f"{self.phase}-{self.kind}" + (f"-{self.skip}" if self.skip else "")


KINDS: dict[Phase, tuple[str, ...]] = {
    Phase.GREETING: ("hang", "cut", "garbage", "wrong-magic", "no-option", "flood"),
    Phase.STRUCTURED: ("hang", "cut", "garbage", "absurd-length", "error", "wrong-option", "flood"),
    Phase.CONTEXT: ("hang", "cut", "absurd-length", "error", "wrong-context", "flood"),
    Phase.GO: (
        "hang",
        "cut",
        "absurd-length",
        "error",
        "huge-size",
        "largest-size",
        "negative-size",
        "no-size",
        "tiny-blocks",
        "flood",
    ),
    Phase.READ: (
        "hang",
        "cut",
        "half",
        "error",
        "wrong-cookie",
        "wrong-magic",
        "oversize-chunk",
        "offset-outside",
        "absurd-length",
        "short",
        "unknown-chunk",
    ),
    Phase.WRITE: ("hang", "cut", "error", "wrong-cookie", "wrong-magic"),
    Phase.FLUSH: ("hang", "cut", "error", "wrong-cookie"),
    Phase.ZEROES: ("hang", "cut", "error"),
    Phase.STATUS: (
        "hang",
        "cut",
        "half",
        "error",
        "no-extents",
        "empty-extent",
        "beyond-end",
        "huge-extents",
        "odd-length",
        "wrong-context",
        "twice",
        "wrong-cookie",
        "many",
    ),
    Phase.LEAVE: ("hang",),
}
"""Every fault there is, by phase."""

WORDS = {kind for kinds in KINDS.values() for kind in kinds}


@dataclass
class Liar:
    """A server; start it by `served`.

    Attributes:
        path: of its unix socket.
        content: of its export.
        fault: what goes wrong; None: nothing.
        reached: is set when the fault has been put in.
    """

    path: Path
    content: bytearray
    fault: Fault | None = None
    reached: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._skip = 0 if self.fault is None else self.fault.skip
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        """Of its export."""
        return unix_uri(str(self.path))

    def close(self) -> None:
        """End it and all its connections."""
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def lies(self, phase: Phase) -> str | None:
        """The kind of fault to put in now."""
        if self.fault is None or self.fault.phase is not phase:
            return None
        with self._lock:
            if self._skip:
                self._skip -= 1
                return None
        kind = self.fault.kind
        self.reached.set()
        if kind == "hang":
            raise Hang
        if kind == "cut":
            raise Cut
        return kind

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError, Cut, struct.error):
            try:
                _Session(self, client).run()
            except Hang:
                while client.recv(65536):
                    pass
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class _Session:
    def __init__(self, liar: Liar, client: socket.socket) -> None:
        self._liar = liar
        self._client = client
        self._structured = False
        self._contexts: list[bytes] = []

    def run(self) -> None:
        self._greet()
        if self._negotiate():
            while self._request():
                pass

    def _say(self, data: bytes) -> None:
        self._client.sendall(data)

    def _hear(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self._client.recv(count - len(got))
            if not more:
                raise EOFError
            got += more
        return got

    def _flood(self) -> None:
        for _ in range(4096):
            self._say(b"\xa5" * 65536)
        raise Cut

    # ---- negotiation

    def _greet(self) -> None:
        kind = self._liar.lies(Phase.GREETING)
        if kind == "flood":
            self._flood()
        said = {
            "garbage": b"HTTP/1.1 400 Bad Request\r\n",
            "wrong-magic": b"NBDMAGIX" + _OPTION + struct.pack(">H", 3),
            "no-option": _MAGIC + b"\0" * 10,
        }
        self._say(said.get(kind or "", _MAGIC + _OPTION + struct.pack(">H", 3)))
        self._hear(4)

    def _negotiate(self) -> bool:
        while True:
            magic, option, length = struct.unpack(">8sII", self._hear(16))
            data = self._hear(length)
            if magic != _OPTION or option == _ABORT:
                return False
            if option == _STRUCTURED_REPLY:
                self._structured_option(option)
            elif option == _SET_CONTEXT:
                self._context_option(option, data)
            elif option in (_GO, _INFO):
                self._go_option(option)
                if option == _GO:
                    return True
            elif option == _EXPORT_NAME:
                self._say(struct.pack(">QH", len(self._liar.content), _FLAGS) + bytes(124))
                return True
            else:
                self._answer(option, _UNSUPPORTED)

    def _answer(self, option: int, kind: int, data: bytes = b"", length: int | None = None) -> None:
        length = len(data) if length is None else length
        self._say(struct.pack(">QIII", _REPLY, option, kind, length) + data)

    def _option_fault(self, option: int, kind: str | None) -> bool:
        """Put a fault in that any option can have; whether it was one."""
        if kind == "flood":
            for _ in range(100_000):
                self._answer(option, _META, struct.pack(">I", 1) + b"x:y")
            raise Cut
        said = {
            "garbage": b"\xff" * 20,
            "absurd-length": struct.pack(">QIII", _REPLY, option, _INFO_REPLY, 0xFFFFFFF0),
            "error": struct.pack(">QIII", _REPLY, option, (1 << 31) + 2, 5) + b"no\x1b\nx",
            "wrong-option": struct.pack(">QIII", _REPLY, 99, _ACK, 0),
        }
        if kind in said:
            self._say(said[kind])
            return True
        return False

    def _structured_option(self, option: int) -> None:
        kind = self._liar.lies(Phase.STRUCTURED)
        if not self._option_fault(option, kind):
            self._structured = True
            self._answer(option, _ACK)

    def _context_option(self, option: int, data: bytes) -> None:
        kind = self._liar.lies(Phase.CONTEXT)
        if self._option_fault(option, kind):
            return
        (name,) = struct.unpack_from(">I", data)
        (count,) = struct.unpack_from(">I", data, 4 + name)
        at = 8 + name
        self._contexts = []
        for number in range(count):
            (length,) = struct.unpack_from(">I", data, at)
            context = data[at + 4 : at + 4 + length]
            at += 4 + length
            self._contexts.append(context)
            shown = b"other:context" if kind == "wrong-context" else context
            self._answer(option, _META, struct.pack(">I", number + 1) + shown)
        self._answer(option, _ACK)

    def _go_option(self, option: int) -> None:
        kind = self._liar.lies(Phase.GO)
        if self._option_fault(option, kind):
            return
        sizes = {
            "huge-size": 1 << 61,
            "largest-size": (1 << 63) - 1,
            "negative-size": (1 << 64) - 4096,
        }
        size = sizes.get(kind or "", len(self._liar.content))
        if kind != "no-size":
            self._answer(option, _INFO_REPLY, struct.pack(">HQH", 0, size, _FLAGS))
        if kind == "tiny-blocks":
            self._answer(option, _INFO_REPLY, struct.pack(">HIII", 3, 1, 1, 1))
        self._answer(option, _ACK)

    # ---- requests

    def _request(self) -> bool:
        magic, _, command, cookie, offset, length = struct.unpack(">IHHQQI", self._hear(28))
        if magic != _REQUEST:
            return False
        if command == _DISC:
            self._liar.lies(Phase.LEAVE)
            return False
        if command == _READ:
            self._read(cookie, offset, length)
        elif command == _STATUS:
            self._status(cookie, offset, length)
        else:
            self._change(command, cookie, offset, length)
        return True

    def _chunk(self, cookie: int, kind: int, data: bytes, **odd: Any) -> None:
        magic, length = odd.get("magic", _STRUCTURED), odd.get("length", len(data))
        flags = odd.get("flags", 1)
        self._say(struct.pack(">IHHQI", magic, flags, kind, cookie, length) + data)

    def _error(self, cookie: int) -> None:
        text = b"bad\x1b[31m\ndisk"
        if self._structured:
            self._chunk(cookie, (1 << 15) + 1, struct.pack(">IH", 5, len(text)) + text)
        else:
            self._simple(cookie, 5)

    def _simple(self, cookie: int, error: int = 0, magic: int = _SIMPLE) -> None:
        self._say(struct.pack(">IIQ", magic, error, cookie))

    def _read(self, cookie: int, offset: int, length: int) -> None:
        kind = self._liar.lies(Phase.READ)
        data = bytes(self._liar.content[offset : offset + length])
        data += bytes(length - len(data))
        if kind == "error":
            self._error(cookie)
        elif self._structured:
            self._read_chunk(cookie, offset, data, kind)
        else:
            odd = kind == "wrong-cookie"
            self._simple(cookie + 7 * odd, magic=1 if kind == "wrong-magic" else _SIMPLE)
            self._say(data)

    def _read_chunk(self, cookie: int, offset: int, data: bytes, kind: str | None) -> None:
        length = len(data)
        place = struct.pack(">Q", offset)
        if kind == "half":
            self._say(struct.pack(">IHHQI", _STRUCTURED, 1, 1, cookie, 8 + length) + place)
            self._say(data[: length // 2])
            raise Cut
        if kind == "wrong-cookie":
            self._chunk(cookie + 7, 1, place + data)
        elif kind == "wrong-magic":
            self._chunk(cookie, 1, place + data, magic=0x12345678)
        elif kind == "oversize-chunk":
            self._chunk(cookie, 1, place + data + bytes(4096))
        elif kind == "offset-outside":
            self._chunk(cookie, 1, struct.pack(">Q", offset + (1 << 40)) + data)
        elif kind == "absurd-length":
            self._chunk(cookie, 1, place, length=0xFFFFFFF0)
        elif kind == "short":
            self._chunk(cookie, 1, place + data[: length // 2])
        elif kind == "unknown-chunk":
            self._chunk(cookie, 77, b"abc")
        else:
            self._chunk(cookie, 1, place + data)

    def _status(self, cookie: int, offset: int, length: int) -> None:
        kind = self._liar.lies(Phase.STATUS)
        rest = len(self._liar.content) - offset
        extents = {
            "no-extents": [],
            "empty-extent": [(0, 3), (min(length, rest), 0)],
            "beyond-end": [(rest + (1 << 20), 0)],
            "huge-extents": [(0xFFFFFFFF, 0)] * 50,
            "many": [(512, 0)] * 200_000,
        }.get(kind or "", [(min(length, rest), 0)])
        body = b"".join(struct.pack(">II", *extent) for extent in extents)
        if kind == "odd-length":
            body += b"xyz"
        if kind == "error":
            self._error(cookie)
            return
        for number in range(len(self._contexts)):
            last = number == len(self._contexts) - 1
            shown = 99 if kind == "wrong-context" else number + 1
            data = struct.pack(">I", shown) + body
            if kind == "half":
                self._say(struct.pack(">IHHQI", _STRUCTURED, 1, 5, cookie, len(data)) + data[:6])
                raise Cut
            if kind == "twice":
                self._chunk(cookie, 5, data, flags=0)
            self._chunk(cookie + 7 * (kind == "wrong-cookie"), 5, data, flags=int(last))

    def _change(self, command: int, cookie: int, offset: int, length: int) -> None:
        data = self._hear(length) if command == _WRITE else bytes(length)
        phases = {_WRITE: Phase.WRITE, _FLUSH: Phase.FLUSH, _ZEROES: Phase.ZEROES}
        phase = phases.get(command)
        kind = None if phase is None else self._liar.lies(phase)
        if kind == "error":
            self._error(cookie)
            return
        if command in (_WRITE, _ZEROES):
            self._liar.content[offset : offset + length] = data
        odd = 7 * (kind == "wrong-cookie")
        if kind == "wrong-magic" or not self._structured:
            self._simple(cookie + odd, magic=1 if kind == "wrong-magic" else _SIMPLE)
        else:
            self._chunk(cookie + odd, 0, b"")


@contextmanager
def served(path: Path, content: bytes, fault: Fault | None = None) -> Iterator[Liar]:
    """A running server."""
    liar = Liar(path, bytearray(content), fault)
    try:
        yield liar
    finally:
        liar.close()
        path.unlink(missing_ok=True)
