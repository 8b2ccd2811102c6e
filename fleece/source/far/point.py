"""A point that a fleece on another host holds."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.delta.part import LARGEST, Part
from fleece.errors import FleeceError, Interrupted, PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.uri import unix_uri
from fleece.source.base import Export, Machine
from fleece.source.far.ask import Asker
from fleece.source.far.line import Line
from fleece.source.far.messages import FarExport, FarRequest, Living, plain

_WATCH_EVERY = 2.0
"""Seconds between two questions: the other side watches by itself, and only wants to hear of us."""


class FarPoint:
    """A living point. `living_point` makes it."""

    push = None
    reclaims = False
    scarce = False

    def __init__(self, living: Living, number: int, asker: Asker, sockets: Sequence[Path]) -> None:
        self.granularity = living.granularity
        self.frozen = living.frozen
        self.stuck = living.stuck
        self.warnings = living.warnings
        self.exports = tuple(_export(each, sockets) for each in living.exports)
        self._living = living
        self._number = number
        self._asker = asker
        self._watched = time.monotonic()
        self._closed = False

    def check(self) -> None:
        """Raise `PointError` if the point is lost, or the other host is."""
        self._see("check")

    def _see(self, word: str) -> None:
        try:
            self._asker.ask(word, point=self._number)
        except SourceError as error:
            raise PointError(error.what, where=error.where, hint=error.hint) from error

    def watch(self) -> None:
        """Raise `PointError` if the other side has given the point up, or is gone."""
        now = time.monotonic()
        if now - self._watched < _WATCH_EVERY and self._asker.lives:
            return
        self._watched = now
        self._see("watch")

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Nothing: what is kept for the point is the other host's."""

    def machine(self) -> Machine:
        """The guest's machine, as it was told when the point was taken."""
        told = self._living.machine
        if told is None:
            return Machine(())
        parts, missing = [], [*told.missing]
        for number, part in enumerate(told.parts):
            try:
                parts.append(Part(part.kind, self._bytes(number, min(part.size, LARGEST + 1))))
            except (SourceError, ValueError) as error:
                missing.append(f"{part.kind}: {error}")
        return Machine(tuple(parts), tuple(missing), told.later)

    def _bytes(self, number: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            said = self._asker.ask("piece", point=self._number, part=number, offset=len(data))
            piece = base64.b64decode(said.text(), validate=True)
            if not piece:
                raise SourceError("the other host does not tell all of it")
            data += piece
        return bytes(data[:size])

    def close(self) -> None:
        """Have the exports ended.

        Raises:
            SourceError: a part of them is left.
        """
        if not self._closed:
            said = self._asker.ask("close", point=self._number)
            self._closed = True
            self.stuck = said.as_a(str) if said.there else None

    def committed(self, oldest: int | None = None) -> Sequence[str]:
        """Have forgotten what only older points needed (`Point.committed`)."""
        try:
            return self._asker.ask("commit", point=self._number, oldest=oldest).list_of(str)
        except SourceError as error:
            return (f"what only older points needed may be left there: {error}",)

    def end(self) -> None:
        """End it, whatever became of it.

        Raises:
            SourceError: a part of it is left.
        """
        self._asker.ask("end", point=self._number)


def _export(told: FarExport, sockets: Sequence[Path]) -> Export:
    if told.socket >= len(sockets):
        raise SourceError("the other fleece tells of a socket that it does not have")
    return Export(
        told.disk,
        unix_uri(str(sockets[told.socket]), told.name),
        told.size,
        told.dirty_context,
        told.granularity,
        told.unit,
        tuple(told.also_dirty),
        told.partial,
    )


@dataclass(frozen=True)
class Way:
    """Whom to ask, and by which line."""

    asker: Asker
    line: Line
    cancel: CancelToken


@contextlib.contextmanager
def living_point(way: Way, request: FarRequest) -> Iterator[FarPoint]:
    """Have a point taken; it is ended whatever happens.

    Raises:
        PointError: it is impossible; nothing was changed.
        SourceError: the guest is not there, or the other host is gone.
    """
    said = way.asker.ask("take", request=plain(request))
    number, living = said.part("number").number(), said.part("point").as_a(Living)
    try:
        sockets = way.line.led(living.sockets, way.cancel)
        point = FarPoint(living, number, way.asker, sockets)
        yield point
    except BaseException as error:
        # The first error is the one to tell. What is not ended so, ends with the connection.
        with contextlib.suppress(FleeceError):
            way.asker.ask("end", point=number)
        if way.cancel.cancelled and isinstance(error, SourceError | PointError):
            raise Interrupted("interrupted; the point was ended") from error
        raise
    point.close()
    point.end()
    way.line.let_go(living.sockets, sockets, way.cancel)
