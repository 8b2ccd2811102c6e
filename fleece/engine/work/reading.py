"""A worker that meets many disks one after the other keeps the reader of one."""

from __future__ import annotations

import contextlib

from fleece.disk.base import ReadableDisk, Reader


class OneReader:
    """The reader of the disk that one worker is at. Close it in the end.

    Items of work come disk by disk, so no reader that was closed is wanted again.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._disk: ReadableDisk | None = None
        self._reader: Reader | None = None

    def of(self, disk: ReadableDisk) -> Reader:
        """The reader of this disk; that of the disk before is closed.

        Raises:
            FleeceError: the disk cannot be opened.
        """
        if self._reader is None or disk is not self._disk:
            self.close()
            self._reader = self._stack.enter_context(disk.reader())
            self._disk = disk
        return self._reader

    def close(self) -> None:
        """Close the reader. Safe to repeat."""
        self._disk = self._reader = None
        self._stack.close()
