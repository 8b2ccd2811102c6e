"""The folder of a point's scratch files and sockets, held by a lock that dies with its engine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleece.errors import SourceError
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import LOCK, SOCKET, PointNames

_LONGEST_SOCKET = 107


@contextmanager
def held_folder(scratch: Path, names: PointNames, monitor: Monitor) -> Iterator[Path]:
    """Make a point's work folder; it is locked for as long as this process lives.

    Raises:
        SourceError: it cannot be made.
    """
    folder = scratch.resolve() / names.prefix
    if len(str(folder / SOCKET)) > _LONGEST_SOCKET:
        raise SourceError(
            "the path is too long for a unix socket",
            where=folder / SOCKET,
            hint="choose a shorter folder with --scratch",
        )
    try:
        folder.mkdir(mode=0o700)
        give_to(folder, monitor)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SourceError(
            f"the scratch folder cannot be used ({error.strerror})",
            where=scratch,
            hint="choose another one with --scratch",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, str(monitor.peer.pid).encode())
        yield folder
    finally:
        os.close(descriptor)


def give_to(path: Path, monitor: Monitor) -> None:
    """Let QEMU's user own what QEMU must open, where this process may give it away."""
    if os.geteuid() == 0 and monitor.peer.uid != 0:
        os.chown(path, monitor.peer.uid, monitor.peer.gid)
