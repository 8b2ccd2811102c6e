"""Where a delta is written to, front to back."""

from __future__ import annotations

from typing import Protocol

from fleece.delta.layout import Tag
from fleece.delta.protection import Frames
from fleece.errors import StoreError
from fleece.hashing import Buffer


class Sink(Protocol):
    """Any binary stream that is written front to back."""

    def write(self, data: Buffer, /) -> int | None:
        """Take bytes; may take fewer and say how many, as raw streams do, but never none."""


class Appender:
    """Appends frames to a sink, sealed if the file's frames are, and knows how far it came.

    Args:
        sink: where to.
        frames: how they are stored.
        position: bytes that the sink holds already.
    """

    def __init__(self, sink: Sink, frames: Frames, position: int = 0) -> None:
        self._sink = sink
        self._frames = frames
        self.position = position

    def frame(self, tag: Tag, frame: bytes) -> None:
        """Append a frame."""
        self.store(self._frames.seal(tag, frame))

    def seal(self, tag: Tag, frame: bytes) -> bytes:
        """A frame as it is stored, to `store` later."""
        return self._frames.seal(tag, frame)

    def store(self, data: bytes) -> None:
        """Append bytes as they are."""
        view = memoryview(data)
        while len(view):
            taken = self._sink.write(view)
            if not taken:
                raise StoreError("the sink takes no bytes; it must block until it can")
            view = view[taken:]
            self.position += taken
