"""One run of a configuration at a time on this host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.errors import UsageError
from fleece.folder import PRIVATE_FILE
from fleece.private import private_folder, runtime_folder

_TICK = 0.2


@contextlib.contextmanager
def alone(config: Path, patience: float, cancel: CancelToken, part: str = "") -> Iterator[None]:
    """A context in which no other run of a configuration, or of a part of it, is at work.

    The lock is a file that only this user can open, so nobody else can hold it.

    Args:
        config: the configuration's path.
        patience: seconds to wait for another run's end.
        cancel: ends the waiting.
        part: of the guests; runs of several parts may be at work at once.

    Raises:
        UsageError: another run is at work, or there can be no lock.
        Interrupted: it was cancelled.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(runtime_folder()))
            descriptor = folder.lasting_file(f"run-{name_of(config, part)}", PRIVATE_FILE)
        except OSError as error:
            raise UsageError(f"no lock: {error.strerror}", where=error.filename) from error
        stack.callback(os.close, descriptor)
        end = time.monotonic() + patience
        while not _taken(descriptor):
            cancel.check()
            if time.monotonic() >= end:
                raise UsageError(
                    "another run of this configuration is at work",
                    where=config,
                    hint="--wait SECONDS waits for its end",
                    busy=True,
                )
            time.sleep(_TICK)
        yield


def name_of(config: Path, part: str) -> str:
    """What files of the runs of a configuration are called, or of a part of its guests."""
    whole = os.fsencode(os.path.realpath(config)) + b"\0" + part.encode()
    return hashlib.sha256(whole).hexdigest()[:32]


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
