"""One NBD connection. A connection belongs to one thread at a time; open one for each worker."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import SourceError
from fleece.nbd.binding import libnbd
from fleece.nbd.uri import socket_of
from fleece.reach import Obstacle, obstacle

BASE_ALLOCATION = "base:allocation"
"""The NBD project's standard meta context (proto.md, "Metadata querying")."""

STATE_ZERO = 2
"""`base:allocation`: reads as zeros. The hole bit alone promises nothing (proto.md)."""

DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""What the meta context of a dirty bitmap begins with; its name follows (docs/interop/nbd.txt)."""

STATE_DIRTY = 1
"""`qemu:dirty-bitmap:NAME`: the range is dirty (QEMU, docs/interop/nbd.txt)."""

ChunkArray: TypeAlias = npt.NDArray[np.int64]
"""int64[n, 2]: lengths and flags of consecutive descriptors of a block status reply."""

MAX_STATUS = (1 << 32) - (1 << 16)
"""The most bytes to ask the status of at once: lengths of 4 GiB are refused by libnbd 1.14."""

CONNECT_LIMIT = 30.0
"""Seconds until a server must have greeted and agreed. One that serves as many clients as it takes
leaves the next one waiting without a word, and libnbd by itself waits for ever."""

_TICK = 200
"""Milliseconds between two looks at whether the run is interrupted while a server is waited for."""

_LEAVE_LIMIT = 5.0
"""Seconds that a server has to let go of a client that said goodbye."""

_LARGEST = 1 << 60
"""Bytes: QEMU has no larger disk, and a number below zero is one that a server made up."""

_LEAST = 512
_MOST_BY_DEFAULT = 32 << 20
"""Bytes at once that each server must take unless it says another limit (proto.md, "Block size
constraints")."""

_MOST_ZEROED = 1 << 30
_ATTEMPTS = 3
"""To connect to a server that hangs up. QEMU 9.2 and later hang up on who says nothing for 10 s
(handshake-max-seconds of nbd-server-start): an engine that stood still so long is welcome again."""

_BLANK = memoryview(bytes(1 << 20))


class RequestRefused(SourceError):
    """A request failed, and the connection lives. `number` is the server's errno, 0 if unknown."""

    def __init__(self, what: str, where: str, number: int) -> None:
        super().__init__(what, where=where)
        self.number = number


class ConnectionLost(SourceError):
    """The connection is gone; the export may still be there for another one."""


class Unreachable(ConnectionLost):
    """There was no connection: nobody listens, or this user may not connect."""


class Connection(Closing):
    """A connected export.

    Args:
        uri: of the export.
        contexts: the meta contexts to ask for.
        cancel: ends every wait for the server, with `Interrupted`.

    Attributes:
        size: of the export in bytes.
        read_only: it takes no writes.
        protocol: how it was agreed on, in libnbd's word.
        structured: it answers in pieces; else it can tell of no context at all.
        most: bytes that it takes or gives at once.
        contexts: those that the server has.

    Raises:
        SourceError: it cannot be reached, or not within `CONNECT_LIMIT`. Later: `RequestRefused`
            if a request failed, `ConnectionLost` if the whole connection did.
    """

    def __init__(
        self, uri: str, contexts: tuple[str, ...] = (), cancel: CancelToken | None = None
    ) -> None:
        self.uri = uri
        self._cancel = cancel or CancelToken()
        self._nbd = libnbd()
        self._handle: Any = self._nbd.NBD()
        self._memory = memoryview(b"")
        self._asked: dict[int, tuple[int, dict[str, ChunkArray]]] = {}
        self._handle.set_pread_initialize(False)
        # A key's file, certificates: who names a URI may read what this user may.
        self._handle.set_uri_allow_local_file(True)
        for context in contexts:
            self._handle.add_meta_context(context)
        try:
            self._connect()
            self._look(contexts)
        except BaseException:
            # The error's frames keep this object, and so the server would keep its client.
            self._handle = None
            raise

    def _look(self, contexts: tuple[str, ...]) -> None:
        """Ask for what the export is; the server has told it already."""
        self.contexts = self._call(
            lambda: tuple(name for name in contexts if self._handle.can_meta_context(name))
        )
        self.size: int = self._call(lambda: self._handle.get_size())
        if not 0 <= self.size <= _LARGEST:
            raise SourceError(f"NBD: no disk has {self.size} bytes", where=self.uri)
        self.read_only: bool = self._call(lambda: self._handle.is_read_only())
        self.protocol: str = self._call(self._handle.get_protocol)
        self.structured: bool = self._call(self._handle.get_structured_replies_negotiated)
        limit: int = self._call(lambda: self._handle.get_block_size(self._nbd.SIZE_MAXIMUM))
        self.most = limit or _MOST_BY_DEFAULT
        if self.most < _LEAST:
            raise SourceError(f"NBD: the server takes only {limit} bytes at once", where=self.uri)

    def _connect(self) -> None:
        end = time.monotonic() + CONNECT_LIMIT
        try:
            self._handle.aio_connect_uri(self.uri)
        except self._nbd.Error as error:
            raise self._unreachable(error) from error
        while self._handle.aio_is_connecting():
            self._cancel.check()
            if time.monotonic() > end:
                # Not `ConnectionLost`: another attempt would wait as long.
                raise SourceError(
                    f"NBD: the server did not answer within {CONNECT_LIMIT:.0f} s",
                    where=self.uri,
                    hint="it hangs, or has no place for one client more (ss -xp shows them)",
                )
            try:
                self._handle.poll(_TICK)
            except self._nbd.Error as error:
                raise self._hung_up(error) from error

    def _hung_up(self, error: Any) -> SourceError:
        """Why a connection did not come about.

        libnbd calls it an event that is not valid now, and lives on, if the server hangs up before
        libnbd has looked at the socket at all.
        """
        if _is_gone(self._handle):
            return self._failure(error)
        return ConnectionLost("NBD: the server hung up at once", where=self.uri)

    def _unreachable(self, error: Any) -> SourceError:
        """Why nothing at all can be connected to."""
        found = self._obstacle(error.errnum)
        if found is None:
            return self._failure(error)
        what = f"NBD: the server cannot be reached: {found.what}"
        return Unreachable(what, where=self.uri, hint=found.hint)

    def _obstacle(self, number: int) -> Obstacle | None:
        path = socket_of(self.uri)
        if not number or path is None:
            return None
        return obstacle(path, number)

    def close(self) -> None:
        """Say goodbye and close; errors do not matter any more.

        One that still owes an answer is not waited for.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with contextlib.suppress(self._nbd.Error):
            if handle.aio_is_ready() and not handle.aio_in_flight():
                handle.aio_disconnect()
                end = time.monotonic() + _LEAVE_LIMIT
                while not _is_gone(handle) and time.monotonic() < end:
                    handle.poll(_TICK)

    def read(self, offset: int, length: int, unit: int | None = None) -> memoryview:
        """Read `length` bytes at `offset`; the view is valid until the next read.

        Args:
            offset, length: in bytes.
            unit: read by requests that do not cross a multiple of it, all in flight at once.
        """
        if unit is None and length > self.most:
            unit = self.most
        if unit is None or offset // unit == (offset + length - 1) // unit:
            view = self._room(length)
            self._do(lambda: self._handle.aio_pread(view, offset))
            return view
        view = self._room(length)
        self._call(lambda: self._read_units(offset, view, unit))
        return view

    def _room(self, length: int) -> memoryview:
        """Where to read to: fresh memory for each read costs twice as much as the read."""
        if len(self._memory) < length:
            self._memory = memoryview(bytearray(length))
        return self._memory[:length]

    def _read_units(self, offset: int, view: memoryview, unit: int) -> None:
        end = offset + len(view)
        cookies = []
        for start in range(offset - offset % unit, end, unit):
            low, high = max(start, offset), min(start + unit, end)
            piece = view[low - offset : high - offset]
            cookies.append(self._handle.aio_pread(piece, low))
        failed = [error for cookie in cookies if (error := self._await(cookie)) is not None]
        if failed:
            raise failed[0]

    def _await(self, cookie: int) -> Exception | None:
        """Wait for a command; gives how it failed. None is left in flight, or its buffer is."""
        try:
            while not self._handle.aio_command_completed(cookie):
                self._cancel.check()
                self._handle.poll(_TICK)
        except self._nbd.Error as error:
            found: Exception = error
            return found
        return None

    def _do(self, send: Callable[[], int]) -> None:
        """Send a command and wait for its end, or for that of the run."""
        failed = self._await(self._call(send))
        if failed is not None:
            raise self._failure(failed) from failed

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at `offset`."""
        for at in range(0, len(data), self.most):
            piece = data[at : at + self.most]
            self._do(lambda at=at, piece=piece: self._handle.aio_pwrite(piece, offset + at))  # type: ignore[misc]

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by the server's own means if it has any."""
        most = _MOST_ZEROED if self._handle.can_zero() else len(_BLANK)
        for at in range(offset, offset + length, most):
            count = min(most, offset + length - at)
            if most == _MOST_ZEROED:
                self._do(lambda at=at, count=count: self._handle.aio_zero(count, at))  # type: ignore[misc]
            else:
                self.write(at, _BLANK[:count])

    def trim(self, offset: int, length: int) -> None:
        """Tell that a range (of less than 4 GiB) is no longer needed."""
        self._do(lambda: self._handle.aio_trim(length, offset))

    def flush(self) -> None:
        """Make everything written durable."""
        self._do(self._handle.aio_flush)

    def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
        """One block status request for all contexts of the connection.

        Each context has a reply of its own, which may end before the range does, or after it.
        """
        replies: dict[str, ChunkArray] = {}
        take = _taking(offset, replies)
        self._do(lambda: self._handle.aio_block_status(length, offset, take))
        return replies

    def ask_status(self, offset: int, length: int) -> None:
        """Send a block status request and do not wait: `status_answer` gives what comes back."""
        replies: dict[str, ChunkArray] = {}
        take = _taking(offset, replies)
        cookie = self._call(lambda: self._handle.aio_block_status(length, offset, take))
        self._asked[cookie] = offset, replies

    def status_answer(self) -> tuple[int, dict[str, ChunkArray]]:
        """Wait for the answer to any one of the requests that were sent by `ask_status`.

        Returns:
            (offset, replies): where that request began, and what `block_status` gives.
        """
        while not (cookie := self._call(self._handle.aio_peek_command_completed)):
            self._cancel.check()
            self._call(lambda: self._handle.poll(_TICK))
        answered = self._asked.pop(cookie)
        self._call(lambda: self._handle.aio_command_completed(cookie))
        return answered

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except self._nbd.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: Any) -> SourceError:
        """An error of libnbd as ours."""
        name = errno.errorcode.get(error.errnum, "") if error.errnum else ""
        lost = _is_gone(self._handle)
        what = f"NBD: {error.string}{f' ({name})' if name else ''}"
        if lost:
            return ConnectionLost(what, where=self.uri)
        return RequestRefused(what, self.uri, error.errnum or 0)


def connected(
    uri: str, contexts: tuple[str, ...] = (), cancel: CancelToken | None = None
) -> Connection:
    """A new connection; a server that hangs up before it is one is asked again.

    Raises:
        SourceError: as `Connection`.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return Connection(uri, contexts, cancel)
        except Unreachable:
            raise
        except ConnectionLost:
            continue
    return Connection(uri, contexts, cancel)


def _is_gone(handle: Any) -> bool:
    return bool(handle.aio_is_closed() or handle.aio_is_dead())


def _taking(offset: int, replies: dict[str, ChunkArray]) -> Callable[..., int]:
    """A callback of libnbd that notes what each context says of the range from `offset` on."""

    def take(context: str, start: int, entries: list[int], error: object) -> int:
        if start == offset and context not in replies:
            replies[context] = np.array(entries, np.int64).reshape(-1, 2)
        return 0

    return take
