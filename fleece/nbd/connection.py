"""One NBD connection. A connection belongs to one thread at a time; open one for each worker."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fleece.errors import SourceError
from fleece.nbd.binding import libnbd

BASE_ALLOCATION = "base:allocation"
"""The NBD project's standard meta context (proto.md, "Metadata querying")."""

STATE_ZERO = 2
"""`base:allocation`: reads as zeros. The hole bit alone promises nothing (proto.md)."""

STATE_DIRTY = 1
"""`qemu:dirty-bitmap:NAME`: the range is dirty (QEMU, docs/interop/nbd.txt)."""

ChunkArray: TypeAlias = npt.NDArray[np.int64]
"""int64[n, 2]: lengths and flags of consecutive descriptors of a block status reply."""

MAX_STATUS = (1 << 32) - (1 << 16)
"""The most bytes to ask the status of at once: lengths of 4 GiB are refused by libnbd 1.14."""

CONNECT_LIMIT = 30.0
"""Seconds until a server must have greeted and agreed. One that serves as many clients as it takes
leaves the next one waiting without a word, and libnbd by itself waits for ever."""

_MOST_BY_DEFAULT = 32 << 20
"""Bytes at once that each server must take unless it says another limit (proto.md, "Block size
constraints")."""

_MOST_ZEROED = 1 << 30
_BLANK = memoryview(bytes(1 << 20))


class RequestRefused(SourceError):
    """A request failed, and the connection lives. `number` is the server's errno, 0 if unknown."""

    def __init__(self, what: str, where: str, number: int) -> None:
        super().__init__(what, where=where)
        self.number = number


class ConnectionLost(SourceError):
    """The connection is gone; the export may still be there for another one."""


class Connection:
    """A connected export.

    Args:
        uri: of the export.
        contexts: the meta contexts to ask for.

    Attributes:
        size: of the export in bytes.
        read_only: it takes no writes.
        most: bytes that it takes or gives at once.
        contexts: those that the server has.

    Raises:
        SourceError: it cannot be reached, or not within `CONNECT_LIMIT`. Later: `RequestRefused`
            if a request failed, `ConnectionLost` if the whole connection did.
    """

    def __init__(self, uri: str, contexts: tuple[str, ...] = ()) -> None:
        self.uri = uri
        self._nbd = libnbd()
        self._handle: Any = self._nbd.NBD()
        self._asked: dict[int, tuple[int, dict[str, ChunkArray]]] = {}
        self._handle.set_pread_initialize(False)
        for context in contexts:
            self._handle.add_meta_context(context)
        self._connect()
        self.contexts = tuple(name for name in contexts if self._handle.can_meta_context(name))
        self.size: int = self._handle.get_size()
        self.read_only: bool = self._handle.is_read_only()
        self.most: int = self._handle.get_block_size(self._nbd.SIZE_MAXIMUM) or _MOST_BY_DEFAULT

    def _connect(self) -> None:
        end = time.monotonic() + CONNECT_LIMIT
        self._call(lambda: self._handle.aio_connect_uri(self.uri))
        while self._handle.aio_is_connecting():
            left = end - time.monotonic()
            if left <= 0:
                self._handle = None  # not `ConnectionLost`: another attempt would wait as long
                raise SourceError(
                    f"NBD: the server did not answer within {CONNECT_LIMIT:.0f} s",
                    where=self.uri,
                    hint="it hangs, or has no place for one client more (ss -xp shows them)",
                )
            wait = math.ceil(left * 1000)
            self._call(lambda wait=wait: self._handle.poll(wait))  # type: ignore[misc]

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and close; errors do not matter any more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(self._nbd.Error):
                if handle.aio_is_ready():
                    handle.shutdown()

    def read(self, offset: int, length: int, unit: int | None = None) -> bytearray:
        """Read `length` bytes at `offset`.

        Args:
            offset, length: in bytes.
            unit: read by requests that do not cross a multiple of it, all in flight at once.
        """
        if unit is None and length > self.most:
            unit = self.most
        if unit is None or offset // unit == (offset + length - 1) // unit:
            try:
                data: bytearray = self._handle.pread(length, offset)
            except self._nbd.Error as error:
                raise self._failure(error) from error
        else:
            data = self._call(lambda: self._read_units(offset, length, unit))
        return data

    def _read_units(self, offset: int, length: int, unit: int) -> bytearray:
        data, end = bytearray(length), offset + length
        cookies = []
        with memoryview(data) as view:
            for start in range(offset - offset % unit, end, unit):
                low, high = max(start, offset), min(start + unit, end)
                piece = view[low - offset : high - offset]
                cookies.append(self._handle.aio_pread(piece, low))
            failed = [error for cookie in cookies if (error := self._await(cookie)) is not None]
        if failed:
            raise failed[0]
        return data

    def _await(self, cookie: int) -> Exception | None:
        """Wait for a command; gives how it failed. None is left in flight, or its buffer is."""
        try:
            while not self._handle.aio_command_completed(cookie):
                self._handle.poll(-1)
        except self._nbd.Error as error:
            found: Exception = error
            return found
        return None

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at `offset`."""
        for at in range(0, len(data), self.most):
            piece = data[at : at + self.most]
            self._call(lambda at=at, piece=piece: self._handle.pwrite(piece, offset + at))  # type: ignore[misc]

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by the server's own means if it has any."""
        most = _MOST_ZEROED if self._handle.can_zero() else len(_BLANK)
        for at in range(offset, offset + length, most):
            count = min(most, offset + length - at)
            if most == _MOST_ZEROED:
                self._call(lambda at=at, count=count: self._handle.zero(count, at))  # type: ignore[misc]
            else:
                self.write(at, _BLANK[:count])

    def trim(self, offset: int, length: int) -> None:
        """Tell that a range (of less than 4 GiB) is no longer needed."""
        self._call(lambda: self._handle.trim(length, offset))

    def flush(self) -> None:
        """Make everything written durable."""
        self._call(self._handle.flush)

    def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
        """One block status request for all contexts of the connection.

        Each context has a reply of its own, which may end before the range does, or after it.
        """
        replies: dict[str, ChunkArray] = {}
        self._call(lambda: self._handle.block_status(length, offset, _taking(offset, replies)))
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
            self._call(lambda: self._handle.poll(-1))
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
        lost = self._handle.aio_is_dead() or self._handle.aio_is_closed()
        what = f"NBD: {error.string}{f' ({name})' if name else ''}"
        if lost:
            return ConnectionLost(what, where=self.uri)
        return RequestRefused(what, self.uri, error.errnum or 0)


def _taking(offset: int, replies: dict[str, ChunkArray]) -> Callable[..., int]:
    """A callback of libnbd that notes what each context says of the range from `offset` on."""

    def take(context: str, start: int, entries: list[int], error: object) -> int:
        if start == offset and context not in replies:
            replies[context] = np.array(entries, np.int64).reshape(-1, 2)
        return 0

    return take
