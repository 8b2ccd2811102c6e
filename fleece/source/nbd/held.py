"""A connection to each export, from the first look to the end of the source.

Some servers end with their last client (qemu-nbd without --persistent, a session of Incus). And a
connection that lived through a whole backup proves that no other server took this one's place.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import PointError, SourceError
from fleece.nbd.connection import Connection, RequestRefused, connected
from fleece.source.nbd.text import Place

_PROBE = 64 * 1024
"""Bytes that are read to see whether a server is there: no smallest block is larger."""


_EVERY = 30.0
"""Seconds between two uses of a connection while its point is read."""


class HeldExports(Closing):
    """Connections that are kept.

    Args:
        contexts: those that each server is asked for, to see whether it has them.
        cancel: ends every wait for a server.
    """

    def __init__(self, contexts: Mapping[Place, tuple[str, ...]], cancel: CancelToken) -> None:
        self._contexts = contexts
        self._cancel = cancel
        self._held: dict[Place, Connection] = {}

    def look(self, place: Place) -> Connection:
        """The connection to an export, which is there now.

        Raises:
            SourceError: it cannot be reached, or is empty.
        """
        held = self._held.get(place)
        if held is not None and _lives(held) and _size(place, self._cancel) == held.size:
            return held
        # The old one is not closed: a point may still know by it that it was lost.
        held = connected(place.uri, self._contexts.get(place, ()), self._cancel)
        if not held.size:
            held.close()
            raise SourceError("the export has 0 bytes: that is no disk", where=place.uri)
        self._held[place] = held
        return held

    def of(self, places: Iterable[Place]) -> HeldPoint:
        """Some exports as they were looked at last.

        Raises:
            PointError: one is not there any more.
        """
        held = HeldPoint({place: self._held[place] for place in places}, self._cancel)
        held.check()
        return held

    def close(self) -> None:
        """Let go of all of them. Safe to repeat."""
        while self._held:
            self._held.popitem()[1].close()


class HeldPoint:
    """The exports of a point, by the connections to them that have lived since before it.

    Args:
        held: these, which are closed by who made them.
        cancel: ends every wait for a server.
    """

    def __init__(self, held: Mapping[Place, Connection], cancel: CancelToken) -> None:
        self._held = held
        self._cancel = cancel
        self._next = time.monotonic() + _EVERY

    def watch(self) -> None:
        """Use the connections now and then: what is idle for long, something in between may cut.

        Raises:
            PointError: one is gone.
        """
        if time.monotonic() < self._next:
            return
        for place, held in self._held.items():
            _check_lives(place, held)
        self._next = time.monotonic() + _EVERY

    def check(self) -> None:
        """Check that all of them are what they were.

        Raises:
            PointError: one is gone, was replaced, or has another size.
        """
        for place, held in self._held.items():
            _check_lives(place, held)
            try:
                size = _size(place, self._cancel)
            except SourceError as error:
                what = f"disk {place.name} is no longer served: {error.what}"
                raise PointError(what, where=place.uri, hint=error.hint) from error
            if size != held.size:
                raise PointError(
                    f"disk {place.name} was resized from {held.size} to {size} bytes",
                    where=place.uri,
                )


def _size(place: Place, cancel: CancelToken) -> int:
    """What a new connection is told: one that was made before a resize knows nothing of it."""
    with connected(place.uri, cancel=cancel) as now:
        return now.size


def _check_lives(place: Place, held: Connection) -> None:
    if not _lives(held):
        raise PointError(
            f"the server of disk {place.name} has ended, or hung up",
            where=place.uri,
            hint="run the backup again, with a point that is served until it ends",
        )


def _lives(held: Connection) -> bool:
    try:
        held.read(0, min(held.size, _PROBE))
    except RequestRefused as error:  # of some exports only what changed can be read
        return error.number != errno.ESHUTDOWN
    except SourceError:
        return False
    return True
