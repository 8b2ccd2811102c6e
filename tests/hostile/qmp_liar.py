"""A QMP monitor that lies: a real one behind a proxy that makes one answer a wrong one."""

from __future__ import annotations

import copy
import enum
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GREETING = "greeting"
"""What the greeting is called among the commands."""

_DEEP = 20_000
_EVENT = {"event": "RTC_CHANGE", "data": {"offset": 1}, "timestamp": {"seconds": 1}}


class Kind(enum.StrEnum):
    """What becomes of an answer."""

    NULL = "null"
    NUMBER = "number"
    NEGATIVE = "negative"
    HUGE = "huge"
    FLOAT = "float"
    TEXT = "text"
    ODD_TEXT = "odd text"
    LONG_TEXT = "long text"
    FLAG = "flag"
    LIST = "list"
    OBJECT = "object"
    DEEP = "deep"
    REMOVED = "removed"
    TWICE = "twice"
    WHOLE = "whole"
    ERROR = "error"
    BAD_ERROR = "bad error"
    NO_ANSWER = "no answer"
    OTHER_ID = "other id"
    ODD_ID = "odd id"
    NO_ID = "no id"
    GARBAGE = "garbage"
    HALF = "half"
    CLOSED = "closed"
    ENDLESS = "endless"
    EVENTS = "events"
    ODD_EVENT = "odd event"
    LATE = "late"
    DROPPED = "dropped"


VALUES: dict[Kind, Any] = {
    Kind.NULL: None,
    Kind.NUMBER: 7,
    Kind.NEGATIVE: -1,
    Kind.HUGE: 10**30,
    Kind.FLOAT: 1e300,
    Kind.TEXT: "fleece",
    Kind.ODD_TEXT: "\ud800\0\x1b[31m\n",
    Kind.LONG_TEXT: "x" * 5_000_000,
    Kind.FLAG: True,
    Kind.LIST: [[]],
    Kind.OBJECT: {"": {}},
}
"""What a value is replaced by."""

SILENT = (Kind.DROPPED, Kind.OTHER_ID, Kind.NO_ID)
"""Kinds after which an answer never comes: QEMU has two minutes for it."""

_LOUD = [kind for kind in Kind if kind not in SILENT]


@dataclass(frozen=True)
class Lie:
    """One wrong answer.

    Attributes:
        command: to which.
        nth: of the answers to it, from 0 on.
        kind: how.
        seed: chooses the part of the answer.
    """

    command: str
    nth: int
    kind: Kind
    seed: int

    def __str__(self) -> str:
        return f"{self.command}-{self.nth}-{self.kind}-{self.seed}".replace(" ", "-")


@dataclass
class Liar:
    """A socket that passes everything on to a monitor and back, but for one answer.

    Attributes:
        path: of the socket.
        behind: the real monitor.
        lie: what to say wrong; None: nothing.
        heard: how often each command was answered.
        told: is set when the lie was told.
    """

    path: Path
    behind: Path
    lie: Lie | None = None
    heard: Counter[str] = field(default_factory=Counter)
    told: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it."""
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self.behind))
                self._open += [client, server]
                _Passing(self, client, server)


class _Passing:
    """One client's connection."""

    def __init__(self, liar: Liar, client: socket.socket, server: socket.socket) -> None:
        self._liar = liar
        self._client = client
        self._server = server
        self._asked: dict[str, str] = {}
        for work in (self._ask, self._answer):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Any) -> None:
        with suppress(OSError, ValueError):
            work()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _ask(self) -> None:
        held = ""
        while data := self._client.recv(65536):
            held = self._noted(held + data.decode())
            self._server.sendall(data)

    def _noted(self, text: str) -> str:
        """Note which commands were sent; gives what is not whole yet. No line ends them."""
        while text := text.lstrip():
            try:
                asked, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            self._asked[str(asked.get("id"))] = asked["execute"]
            text = text[end:]
        return text

    def _answer(self) -> None:
        with self._server.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "event" in said:
                    self._client.sendall(line)
                    continue
                command = GREETING if "QMP" in said else self._asked.get(str(said.get("id")), "")
                nth = self._liar.heard[command]
                self._liar.heard[command] += 1
                lie = self._liar.lie
                if lie is not None and (lie.command, lie.nth) == (command, nth):
                    self._liar.told.set()
                    if not self._tell(lie, said, line):
                        return
                else:
                    self._client.sendall(line)

    def _tell(self, lie: Lie, said: dict[str, Any], line: bytes) -> bool:
        """Send something else; whether the connection goes on."""
        if lie.kind in _ENDS:
            with suppress(OSError):
                self._client.sendall(_ENDS[lie.kind](line))
            return False
        if lie.kind is Kind.DROPPED:
            return True
        if lie.kind is Kind.LATE:
            self._client.sendall(_lines(*[_EVENT] * 100))
        for piece in _wrong(lie, said):
            self._client.sendall(piece)
        return True


_ENDS: dict[Kind, Any] = {
    Kind.HALF: lambda line: line[: len(line) // 2],
    Kind.CLOSED: lambda line: b"",
}


def _lines(*messages: object) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def _wrong(lie: Lie, said: dict[str, Any]) -> Iterator[bytes]:
    """What is sent instead of an answer."""
    ident = {"id": said["id"]} if "id" in said else {}
    whole: dict[Kind, Any] = {
        Kind.WHOLE: {"return": None} | ident,
        Kind.ERROR: {"error": {"class": "GenericError", "desc": "no\n\x1b[31m " * 9}} | ident,
        Kind.BAD_ERROR: {"error": [1, 2]} | ident,
        Kind.NO_ANSWER: ident,
        Kind.OTHER_ID: said | {"id": "someone's"},
        Kind.ODD_ID: said | {"id": [{}]},
        Kind.NO_ID: {name: value for name, value in said.items() if name != "id"},
        Kind.LATE: said,
    }
    if lie.kind in whole:
        yield _lines(whole[lie.kind])
    elif lie.kind is Kind.GARBAGE:
        yield b"\xff\xfe{{{]\n"
    elif lie.kind is Kind.ENDLESS:
        for _ in range(24):
            yield b'{"return": "' + b"x" * (1 << 19)
    elif lie.kind is Kind.EVENTS:
        for _ in range(200):
            yield _lines(*[_EVENT] * 100)
        yield _lines(said)
    elif lie.kind is Kind.ODD_EVENT:
        yield _lines({"event": [], "data": 5}, said)
    elif lie.kind is Kind.DEEP:
        yield b'{"return": ' + b"[" * _DEEP + b"]" * _DEEP + b"}\n"
    else:
        yield _lines(_changed(lie, said))


def _changed(lie: Lie, said: dict[str, Any]) -> dict[str, Any]:
    """An answer in which one part is another."""
    made = copy.deepcopy(said)
    places = [place for place in _places(made) if place[1] != "id"]
    if not places:
        return made
    holder, key = random.Random(lie.seed).choice(places)
    if lie.kind is Kind.REMOVED:
        del holder[key]
    elif lie.kind is Kind.TWICE and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif lie.kind is Kind.FLAG:
        holder[key] = not holder[key]
    else:
        holder[key] = VALUES.get(lie.kind, "twice")
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All parts of a message: what each is in, and its key or number there."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, part in items:
        yield value, key
        yield from _places(part)


@contextmanager
def lying(path: Path, behind: Path, lie: Lie | None = None) -> Iterator[Liar]:
    """A running liar."""
    liar = Liar(path, behind, lie)
    try:
        yield liar
    finally:
        liar.close()


def sample(heard: Counter[str], count: int, seed: int) -> list[Lie]:
    """Lies about commands that were heard, each kind as often as any other.

    Args:
        heard: how often each command is answered.
        count: of lies.
        seed: chooses them.
    """
    chance = random.Random(seed)
    lies = []
    for number in range(count):
        command = chance.choice(sorted(heard))
        nth = chance.randrange(heard[command])
        kind = _LOUD[number % len(_LOUD)]
        lies.append(Lie(command, nth, kind, chance.randrange(1 << 30)))
    return lies
