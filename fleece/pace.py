"""A limit of bytes per second that many threads keep together."""

from __future__ import annotations

import threading
import time

from fleece.cancel import CancelToken

_SAVED = 0.25
"""Seconds of unused rate that may be made up for: a slow moment costs nothing, a pause no burst."""

_SLICE = 0.1


class Pace:
    """Lets bytes through at a rate.

    Args:
        rate: bytes per second, more than 0.
        cancel: ends the waiting.
    """

    def __init__(self, rate: int, cancel: CancelToken) -> None:
        self._rate = rate
        self._cancel = cancel
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def take(self, count: int) -> None:
        """Return when `count` more bytes may be read.

        Raises:
            Interrupted: it was cancelled.
        """
        with self._lock:
            start = max(self._free, time.monotonic() - _SAVED)
            self._free = start + count / self._rate
        while (left := start - time.monotonic()) > 0:
            self._cancel.check()
            time.sleep(min(left, _SLICE))
