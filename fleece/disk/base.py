"""What the engine asks of a disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from fleece.extents import Extents


class Reader(Protocol):
    """Reads for one thread. Use it as a context manager."""

    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Exactly `length` bytes. A view is valid until the next call."""


class ReadableDisk(Protocol):
    """A disk that any number of threads can read at once, each through a reader of its own."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def where(self) -> str:
        """Its name in messages."""

    def reader(self) -> AbstractContextManager[Reader]:
        """A new reader."""

    def zero_extents(self, within: Extents) -> Extents:
        """Parts of `within` that are known to read as zeros without being read."""


class Writer(Protocol):
    """Writes for one thread. Use it as a context manager."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, whatever it held."""


class WritableDisk(ReadableDisk, Protocol):
    """A disk that any number of threads can write at once."""

    def writer(self) -> AbstractContextManager[Writer]:
        """A new writer."""

    def flush(self) -> None:
        """Make everything that was written durable."""
