"""A lock that dies with its holder: flock(2)."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable

from fleece.cancel import CancelToken
from fleece.errors import FleeceError

_TICK = 0.1


def take(
    descriptor: int, patience: float, cancel: CancelToken, taken: Callable[[], FleeceError]
) -> None:
    """Lock an open file, once nobody else has it locked. Closing it ends that.

    Args:
        descriptor: of the file.
        patience: seconds to wait for another holder.
        cancel: ends the waiting.
        taken: makes the error that says that somebody else has it.

    Raises:
        Interrupted: it was cancelled.
        FleeceError: somebody else has it, and has had it for so long.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= limit:
                raise taken() from error
            cancel.check()
            time.sleep(_TICK)
