"""An NBD export as a disk: a connection for each thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from fleece.cancel import CancelToken
from fleece.disk.base import Writer
from fleece.errors import FleeceError, SourceError
from fleece.extents import Extents
from fleece.nbd.connection import (
    BASE_ALLOCATION,
    STATE_DIRTY,
    STATE_ZERO,
    Connection,
    ConnectionLost,
    RequestRefused,
    connected,
)
from fleece.nbd.status import flagged, flagged_ahead
from fleece.pace import Pace

_WAITS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds before each new attempt of a read whose connection was lost."""

_MUCH = 128 << 20
_LARGE = 8 << 20
"""Bytes to read at once when `_MUCH` has been read (`_PatientReader._read_large`)."""

T = TypeVar("T")


class NbdDisk:
    """An export by its URI.

    Args:
        uri: of the export.
        failure: the family of errors about this disk.
        unit: no request to read may cross a multiple of it, and no zero status is asked; None: any.
        pace: that reads keep.
        cancel: ends every wait for the server, with `Interrupted`.
        name: of the disk in messages; None: the URI.

    Raises:
        FleeceError: of that family; it cannot be reached.
    """

    def __init__(
        self,
        uri: str,
        failure: type[FleeceError] = SourceError,
        unit: int | None = None,
        pace: Pace | None = None,
        cancel: CancelToken | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.where = name or uri
        self._uri = uri
        self._cancel = cancel
        self.unit = unit
        self.pace = pace
        self._failure = failure
        self._lock = threading.Lock()
        self._read_bytes = 0
        with self._connected() as connection:
            self.size = connection.size
            self.read_only = connection.read_only

    def close(self) -> None:
        """Nothing stays open between uses."""

    @contextlib.contextmanager
    def _connected(self, *contexts: str) -> Iterator[Connection]:
        with self.errors(), connected(self._uri, contexts, self._cancel) as connection:
            yield connection

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the connection into those of this disk's family, and of its name."""
        try:
            yield
        except SourceError as error:
            where = self.where if error.where in (None, self._uri) else error.where
            if self._failure is SourceError and where == error.where:
                raise
            raise self._failure(error.what, where=where, hint=error.hint) from error

    @contextlib.contextmanager
    def reader(self) -> Iterator[_PatientReader]:
        """Reads on a connection of its own, which is replaced when it is lost."""
        reader = _PatientReader(self)
        try:
            yield reader
        finally:
            reader.close()

    def open(self) -> Connection:
        """A new connection to the export, which must be what it was.

        Raises:
            SourceError: it is not, or cannot be reached.
        """
        opened = connected(self._uri, cancel=self._cancel)
        if opened.size != self.size:
            opened.close()
            raise SourceError("the export has another size now", where=self.where)
        return opened

    def count_read(self, length: int) -> bool:
        """Count bytes that are read; true once, when they have become many.

        Never where a large read would not do: it keeps a pace, or must not cross units.
        """
        if self.unit is not None or self.pace is not None:
            return False
        with self._lock:
            before, self._read_bytes = self._read_bytes, self._read_bytes + length
        return before < _MUCH <= before + length

    def writer(self) -> contextlib.AbstractContextManager[Writer]:
        """A new connection."""
        return self._connected()

    def flush(self) -> None:
        """An NBD flush covers what all connections wrote (proto.md, multi-conn)."""
        with self._connected() as connection:
            connection.flush()

    def zero_extents(self, within: Extents) -> Extents:
        """What `base:allocation` says reads as zeros; nothing if the server lacks it."""
        if self.unit is not None:
            return Extents.empty()

        def ask(connection: Connection) -> Extents:
            masks = {BASE_ALLOCATION: STATE_ZERO}
            found = [
                flagged(connection, start, end, masks)[BASE_ALLOCATION] for start, end in within
            ]
            return Extents.joined(found)

        return self._asked(BASE_ALLOCATION, within, ask) or Extents.empty()

    def dirty_extents(self, context: str, within: Extents) -> Extents | None:
        """The parts of `within` that a dirty bitmap's meta context calls dirty.

        None if the server lacks the context.
        """

        def ask(connection: Connection) -> Extents:
            return flagged_ahead(connection, within, context, STATE_DIRTY)

        return self._asked(context, within, ask)

    def _asked(
        self, context: str, within: Extents, ask: Callable[[Connection], Extents]
    ) -> Extents | None:
        """Ask on a connection that negotiates this context alone.

        Its cost then is its own, and an error in it cannot take another one down.
        """
        if len(within) == 0:
            return within

        def work() -> Extents | None:
            with connected(self._uri, (context,), self._cancel) as connection:
                return ask(connection) if connection.contexts else None

        with self.errors():
            return patiently(work)


class _PatientReader:
    """Reads for one thread; a connection that is lost is replaced while the export lives."""

    def __init__(self, disk: NbdDisk) -> None:
        self._disk = disk
        self._connection: Connection | None = None

    def read(self, offset: int, length: int) -> memoryview:
        """Exactly `length` bytes; the view is valid until the next call.

        Raises:
            FleeceError: of the disk's family; the read failed, or the export is gone.
        """
        if self._disk.pace is not None:
            self._disk.pace.take(length)
        try:
            return self._read(offset, length)
        except SourceError as error:
            with self._disk.errors():
                if not isinstance(error, ConnectionLost):
                    raise
                return patiently(lambda: self._read(offset, length))

    def _read(self, offset: int, length: int) -> memoryview:
        connection = self._connection or self._disk.open()
        self._connection = connection
        try:
            if self._disk.count_read(length):
                self._read_large(connection, offset + length)
            return connection.read(offset, length, self._disk.unit)
        except ConnectionLost:
            self.close()
            raise

    def _read_large(self, connection: Connection, end: int) -> None:
        """Read much at once, up to `end`, to have the server keep its buffers from then on.

        QEMU allocates the buffer of each request and frees it. glibc maps large ones afresh, so
        that each page is blanked and faulted in, until it has freed a larger one: from then on it
        keeps what is up to that size, and up to twice as much in all (mallopt(3),
        M_MMAP_THRESHOLD). That is two fifths of what a read costs in QEMU (decision 12).
        """
        length = min(_LARGE, connection.most, end)
        with contextlib.suppress(RequestRefused):  # not a byte of it is wanted
            connection.read(end - length, length)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def patiently(work: Callable[[], T]) -> T:
    """Do something that reads again, a few times, while its connection is lost.

    Raises:
        SourceError: of the last attempt; other errors at once.
    """
    for wait in _WAITS:
        try:
            return work()
        except ConnectionLost:
            time.sleep(wait)
    return work()
