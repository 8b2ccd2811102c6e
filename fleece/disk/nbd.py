"""An NBD export as a disk: a connection for each thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from fleece.errors import FleeceError, SourceError
from fleece.extents import Extents, Int64Array
from fleece.nbd.connection import BASE_ALLOCATION, STATE_ZERO, Connection
from fleece.nbd.status import flagged


class NbdDisk:
    """An export by its URI.

    Args:
        uri: of the export.
        failure: the family of errors about this disk.

    Raises:
        FleeceError: of that family; it cannot be reached.
    """

    def __init__(self, uri: str, failure: type[FleeceError] = SourceError) -> None:
        self.where = uri
        self._failure = failure
        with self._connected() as connection:
            self.size = connection.size
            self.read_only = connection.read_only

    def close(self) -> None:
        """Nothing stays open between uses."""

    @contextlib.contextmanager
    def _connected(self, *contexts: str) -> Iterator[Connection]:
        try:
            with Connection(self.where, contexts) as connection:
                yield connection
        except SourceError as error:
            if self._failure is SourceError:
                raise
            raise self._failure(error.what, where=error.where, hint=error.hint) from error

    def reader(self) -> contextlib.AbstractContextManager[Connection]:
        """A new connection."""
        return self._connected()

    def writer(self) -> contextlib.AbstractContextManager[Connection]:
        """A new connection."""
        return self._connected()

    def flush(self) -> None:
        """An NBD flush covers what all connections wrote (proto.md, multi-conn)."""
        with self._connected() as connection:
            connection.flush()

    def zero_extents(self, within: Extents) -> Extents:
        """What `base:allocation` says reads as zeros; nothing if the server lacks it."""
        return self.flagged(BASE_ALLOCATION, STATE_ZERO, within) or Extents.empty()

    def flagged(self, context: str, mask: int, within: Extents) -> Extents | None:
        """The parts of `within` whose flags in a meta context have a bit of `mask`.

        Asks on a connection that negotiates this context alone: its cost then is its own, and an
        error in it cannot take another one down. None if the server lacks the context.
        """
        if len(within) == 0:
            return within
        starts: list[Int64Array] = []
        ends: list[Int64Array] = []
        with self._connected(context) as connection:
            if not connection.contexts:
                return None
            for start, end in within:
                found = flagged(connection, start, end, {context: mask})[context]
                starts.append(found.start)
                ends.append(found.end)
        return Extents.normal(np.concatenate(starts), np.concatenate(ends))
