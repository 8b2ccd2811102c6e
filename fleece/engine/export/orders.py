"""What the holder of a point is told to do with it: by a line, or by another process.

The other process comes over a socket in the kernel's abstract name space (unix(7)): nothing of it
is in a file system, and it is gone with its process. Each side looks who the other one is: the same
user, or root.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fleece import events
from fleece.cancel import CancelToken
from fleece.engine.clients.peer import ready
from fleece.engine.export.export import Exporting
from fleece.engine.export.token import check_token
from fleece.errors import FleeceError, Interrupted, PointError, SourceError, family_of

_TICK = 100
"""Milliseconds between two looks at the point."""

_PATIENCE = 2.0
"""Seconds for another process to say what it wants."""

_LONGEST = 4096


class Order(enum.StrEnum):
    """What becomes of a point."""

    COMMIT = "commit"
    DROP = "drop"


class Orders:
    """Takes orders for a point until there is one. A context manager.

    Args:
        held: the point.
        place: what the user calls its source.
        stream: a descriptor that lines are read from; the point is dropped if it ends. None: none.
        listener: hears what is no order.
    """

    def __init__(
        self,
        held: Exporting,
        place: str,
        stream: int | None = None,
        listener: events.Listener = events.ignore,
    ) -> None:
        self._held = held
        self._place = place
        self._stream = stream
        self._listener = listener
        self._said = b""
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(_address(held.told.token))
        self._door.listen(4)
        self._door.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._door.close()

    def obey(self, cancel: CancelToken) -> str | None:
        """Look after the point until it is told what becomes of it, and do that.

        Returns:
            The base that a commit makes of the point; None: it was dropped.

        Raises:
            Interrupted: `cancel` was called, or the stream ended: nothing is committed.
            FleeceError: the point is lost.
        """
        waited = [self._door.fileno(), *([] if self._stream is None else [self._stream])]
        while True:
            cancel.check()
            self._held.check()
            found = ready(dict.fromkeys(waited, select.POLLIN), _TICK)
            ended = None
            if self._stream in found and (order := self._line()) is not None:
                ended = self._do(order)
            elif self._door.fileno() in found:
                ended = self._called()
            if ended is not None:
                return ended.base

    def _do(self, order: Order) -> _Ended:
        if order is Order.COMMIT:
            return _Ended(self._held.commit())
        self._held.drop()
        return _Ended(None)

    def _line(self) -> Order | None:
        """What a line of the stream orders, if one is whole."""
        assert self._stream is not None
        data = b""
        with contextlib.suppress(OSError):  # a terminal that is gone
            data = os.read(self._stream, _LONGEST)
        if not data:
            raise Interrupted("the input ended before it said commit: nothing is committed")
        *lines, self._said = (self._said + data)[-_LONGEST:].split(b"\n")
        for line in lines:
            word = line.decode(errors="replace").strip()
            if word in tuple(Order):
                return Order(word)
            self._listener(events.Warned(f"neither commit nor drop: {word}"))
        return None

    def _called(self) -> _Ended | None:
        """Do what another process orders, and tell it what became of it."""
        with contextlib.ExitStack() as stack:
            try:
                caller = stack.enter_context(self._door.accept()[0])
                caller.settimeout(_PATIENCE)
                order = self._heard(caller)
            except (OSError, ValueError, KeyError, TypeError):
                return None  # it left, or is none of ours
            if order is None:
                return None
            try:
                ended = self._do(order)
            except FleeceError as error:
                _say(caller, error=str(error), code=int(error.code))
                raise
            _say(caller, base=ended.base)
            return ended

    def _heard(self, caller: socket.socket) -> Order | None:
        """What a caller orders, if it may and means this point."""
        if not _is_trusted(caller):
            return None
        said = json.loads(caller.recv(_LONGEST))
        if said["source"] != self._place:
            what = f"this is a point of {self._place}"
            _say(caller, error=what, code=int(PointError.code))
            return None
        return Order(said["order"])


@dataclass(frozen=True)
class _Ended:
    """What became of a point: the base that it is by a commit; None: it was dropped."""

    base: str | None


def _say(end: socket.socket, **said: object) -> None:
    """Tell the other process; what was done stays done if it has left."""
    with contextlib.suppress(OSError):
        end.sendall(json.dumps(said).encode())


def order(place: str, token: str, wish: Order, cancel: CancelToken | None = None) -> str | None:
    """Order what becomes of a point that another process holds, and wait until it is done.

    Args:
        place: what its source was called there.
        token: of the point.
        wish: what is ordered.
        cancel: ends the wait; the order stands.

    Returns:
        The base that a commit makes of the point; None: it was dropped.

    Raises:
        PointError: nobody holds such a point, or it was lost; nothing is committed.
        SourceError: its holder ended without an answer.
        UsageError: it is no token.
    """
    address, waiting = _address(token), cancel or CancelToken()
    with socket.socket(socket.AF_UNIX) as end:
        try:
            end.connect(address)
        except OSError as error:
            raise PointError(
                "no process holds this point", where=token, hint="it was dropped, or committed"
            ) from error
        if not _is_trusted(end):
            raise PointError("another user's process claims to hold this point", where=token)
        data = b""
        with contextlib.suppress(OSError):
            end.sendall(json.dumps({"source": place, "order": wish}).encode())
            data = b"".join(_received(end, waiting))
    if not data:
        raise SourceError("its holder ended without an answer", where=token)
    answer = json.loads(data)
    if "error" in answer:
        raise family_of(answer["code"])(answer["error"])
    base: str | None = answer["base"]
    return base


def _received(end: socket.socket, cancel: CancelToken) -> Iterator[bytes]:
    while True:
        cancel.wait(end.fileno(), select.POLLIN)
        data = end.recv(_LONGEST)
        if not data:
            return
        yield data


def _address(token: str) -> bytes:
    """Where the holder of a point listens."""
    return f"\0fleece-export-{check_token(token)}".encode()


def _is_trusted(end: socket.socket) -> bool:
    """Whether the other side is this user, or root."""
    raw = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", raw)[1] in (0, os.geteuid())
