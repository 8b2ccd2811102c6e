"""A point that is held for a fleece on another host: watched here, and its exports passed on."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from fleece.closing import Closing
from fleece.errors import FleeceError, PointError, SourceError
from fleece.nbd.uri import export_of, socket_of
from fleece.source.base import Export, Machine, Point, TellsMachine
from fleece.source.far.messages import (
    PIECE,
    FarExport,
    FarMachine,
    FarPart,
    Living,
)
from fleece.source.far.relay import Relay


class HeldPoint(Closing):
    """A point that lives until this is closed, or the guest needs it to end.

    Args:
        taking: its context.
        folder: a new one, for sockets.
    """

    def __init__(self, taking: AbstractContextManager[Point], folder: Path) -> None:
        self._lost: FleeceError | None = None
        self._closed = False
        self._stack = contextlib.ExitStack()
        self._point = self._stack.enter_context(taking)
        try:
            self._sockets = _sockets(self._point.exports)
            self._machine = _machine(self._point)
            self._relay = Relay(folder, self._sockets)
            self._stack.callback(self._relay.close)
        except OSError as error:
            made = SourceError(f"no socket can be made ({error.strerror})", where=folder)
            self._give_up(made)
            raise made from error
        except BaseException as error:
            self._give_up(error)
            raise

    def told(self) -> Living:
        """What the other side is told of it."""
        point, machine = self._point, self._machine
        return Living(
            tuple(self._export(each) for each in point.exports),
            tuple(map(str, self._relay.sockets)),
            point.granularity,
            point.frozen,
            point.stuck,
            tuple(point.warnings),
            None
            if machine is None
            else FarMachine(
                tuple(FarPart(part.kind, len(part.data)) for part in machine.parts),
                machine.missing,
                machine.later,
            ),
        )

    def _export(self, export: Export) -> FarExport:
        return FarExport(
            export.disk,
            self._sockets.index(_socket(export)),
            export_of(export.uri),
            export.size,
            export.dirty_context,
            export.granularity,
            export.unit,
            export.also_dirty,
            export.partial,
        )

    def piece(self, number: int, offset: int) -> str:
        """A piece of a part of the machine, in base64."""
        parts = () if self._machine is None else self._machine.parts
        if number >= len(parts):
            raise SourceError("the point has no such part")
        return base64.b64encode(parts[number].data[offset : offset + PIECE]).decode()

    def silent_for(self) -> float:
        """Seconds since something was read of it; 0 once nobody is to read it."""
        return 0.0 if self._closed or self._lost else time.monotonic() - self._relay.moved

    def look(self) -> None:
        """Watch the guest, and end the point as soon as it must be given up."""
        if self._closed or self._lost is not None:
            return
        try:
            self._point.watch()
        except FleeceError as error:
            self._give_up(error)

    def watch(self) -> None:
        """Raise what the point was given up for, if it was."""
        self.look()
        if self._lost is not None:
            raise self._lost

    def _give_up(self, error: BaseException) -> None:
        """End it, as a context does that an error leaves."""
        self._lost = error if isinstance(error, FleeceError) else SourceError("interrupted")
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except FleeceError as more:
            self._lost = more
        finally:
            self._stack = contextlib.ExitStack()

    def check(self) -> None:
        """Raise `PointError` if the point is lost."""
        if self._lost is not None:
            raise self._lost
        self._point.check()

    def end_exports(self) -> str | None:
        """End the exports; what is noted for the next point stays. Gives `Point.stuck`."""
        if self._lost is None:
            self._closed = True
            self._relay.close()
            self._point.close()
        return self._point.stuck

    def committed(self, oldest: int | None) -> Sequence[str]:
        """The deltas are durable (`Point.committed`)."""
        if self._lost is not None:
            return (f"what the next backup builds on may not be kept: {self._lost}",)
        return self._point.committed(oldest)

    def close(self) -> None:
        """End it. Safe to repeat."""
        stack, self._stack = self._stack, contextlib.ExitStack()
        stack.close()

    def abandon(self) -> None:
        """End it, because the other side is gone.

        Once its exports were ended it may be durable there: then what the next point needs is
        kept, as by a run that was killed.
        """
        if self._closed:
            with contextlib.suppress(FleeceError):
                self._point.committed(0)
            self.close()
        elif self._lost is None:
            self._give_up(PointError("the other host is gone"))


def _sockets(exports: Sequence[Export]) -> list[str]:
    return list(dict.fromkeys(map(_socket, exports)))


def _socket(export: Export) -> str:
    found = socket_of(export.uri)
    if found is None or export.changed is not None:
        raise SourceError("this kind of export is not passed on", where=export.uri)
    return found


def _machine(point: Point) -> Machine | None:
    return point.machine() if isinstance(point, TellsMachine) else None
