"""One run of a configuration at a time on this host."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from fleece import flock
from fleece.cancel import CancelToken
from fleece.errors import UsageError
from fleece.folder import PRIVATE_FILE
from fleece.private import private_folder, runtime_folder


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
        flock.take(descriptor, patience, cancel, lambda: _at_work(config))
        yield


def _at_work(config: Path) -> UsageError:
    return UsageError(
        "another run of this configuration is at work",
        where=config,
        hint="--wait SECONDS waits for its end",
        busy=True,
    )


def name_of(config: Path, part: str) -> str:
    """What files of the runs of a configuration are called, or of a part of its guests."""
    whole = os.fsencode(os.path.realpath(config)) + b"\0" + part.encode()
    return hashlib.sha256(whole).hexdigest()[:32]
