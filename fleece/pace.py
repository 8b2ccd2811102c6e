"""A limit of bytes per second that many threads keep together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fleece.cancel import CancelToken

_SAVED = 0.25
"""Seconds of unused rate that may be made up for: a slow moment costs nothing, a pause no burst."""

_SLICE = 0.1

Rate = int | Callable[[], int | None]
"""Bytes per second, more than 0; or what tells how many for now, None: any number."""


def rate_now(rate: Rate | None) -> int | None:
    """The bytes per second that a rate means now; None: any number."""
    return rate() if callable(rate) else rate


class Pace:
    """Lets bytes through at a rate.

    Args:
        rate: is asked before each read.
        cancel: ends the waiting.
    """

    def __init__(self, rate: Rate, cancel: CancelToken) -> None:
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
            rate = rate_now(self._rate)
            self._free = start if rate is None else start + count / rate
        while (left := start - time.monotonic()) > 0:
            self._cancel.check()
            time.sleep(min(left, _SLICE))
