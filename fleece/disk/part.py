"""The first bytes of a disk that is larger than what is wanted of it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fleece.disk.base import Reader, WritableDisk, Writer
from fleece.extents import Extents


class Part:
    """A disk of `size` bytes at the start of a larger one, such as a block device.

    Args:
        disk: the whole; of `size` bytes at least.
        size: of the part.
    """

    def __init__(self, disk: WritableDisk, size: int) -> None:
        self._disk = disk
        self.size = size
        self.where = disk.where

    def reader(self) -> AbstractContextManager[Reader]:
        """One of the whole."""
        return self._disk.reader()

    def writer(self) -> AbstractContextManager[Writer]:
        """One of the whole."""
        return self._disk.writer()

    def flush(self) -> None:
        """Of the whole."""
        self._disk.flush()

    def zero_extents(self, within: Extents) -> Extents:
        """Of the whole, which covers `within`."""
        return self._disk.zero_extents(within)
