"""The file of a delta that is being written into a store."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import time
from pathlib import Path

from fleece.errors import StoreError
from fleece.folder import set_mode
from fleece.hashing import Buffer
from fleece.store.errors import store_error, store_errors
from fleece.writeback import Writeback

_GATHERED = 256 * 1024
"""Bytes of short writes that a delta's file gathers; longer ones go to the system at once."""
GATHERED_FOR = 0.1
"""Seconds between two writes after which nothing stays gathered."""


class DeltaFile:
    """The sink of one delta, whose every error is a `StoreError`. For any number of threads.

    Short writes are gathered: a delta of scattered clusters has a record and a frame for each, and
    a worker that waits for the system holds the others up. The first one, the header, is not; and
    `GATHERED_FOR` bounds what is lost if the process is killed.

    Args:
        path: where it is.
        descriptor: of the file, open to write; it is closed with this.
        keep: bytes of the file, behind which writing continues; what follows them is cut off.
    """

    def __init__(self, path: Path, descriptor: int, keep: int = 0) -> None:
        self.path = path
        raw = io.FileIO(descriptor, "r+")
        raw.truncate(keep)
        raw.seek(keep)
        self._file = io.BufferedWriter(raw, _GATHERED)
        self._writeback = Writeback(raw.fileno())
        self._flushed = -math.inf

    def write(self, data: Buffer) -> int:
        """Write `data`; gives how much."""
        if self._file.closed:
            raise StoreError("is written no more", where=self.path)
        try:
            taken = self._file.write(data)
            if time.monotonic() > self._flushed + GATHERED_FOR:
                self._flush()
            self._writeback.wrote(taken)
            return taken
        except OSError as error:
            raise store_error(error, self.path) from error

    def hold(self) -> None:
        """Lock it for as long as it is open: it is in use."""
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def set_mode(self, mode: int) -> None:
        """Give it permissions."""
        set_mode(self._file.fileno(), mode)

    def sync(self) -> None:
        """Make what was written durable."""
        with store_errors(self.path):
            self._sync()

    def close_durably(self) -> None:
        """fsync and close."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        self._flush()
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def abandon(self) -> None:
        """Close, whatever became of it."""
        with contextlib.suppress(OSError):
            self._file.close()
