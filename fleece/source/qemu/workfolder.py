"""The folder of a point's scratch files and sockets, held by a lock that dies with its engine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleece.errors import FleeceError, PointError, SourceError, UsageError
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import LOCK, SOCKET, PointNames

_LONGEST_SOCKET = 107
NO_FLUSH = {"no-flush": True}
"""How QEMU treats the scratch's files (`BlockdevCacheOptions`): no flush reaches their disk. They
are gone with the point, so nobody needs them durable; and QEMU would flush when a qcow2 one grows,
in the guest's way, and when it is closed, with all that QEMU does waiting for it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_path(scratch: Path) -> None:
    """Refuse a scratch folder that QEMU cannot be told of.

    Raises:
        UsageError: its path is not UTF-8, as the JSON of QMP is.
    """
    path = os.fsencode(os.path.realpath(scratch))
    try:
        path.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            "the scratch folder's path is not UTF-8, so QEMU cannot be told of it",
            where=path.decode(errors="backslashreplace"),
            hint="choose another one with --scratch",
        ) from error


@contextmanager
def held_folder(scratch: Path, names: PointNames, monitor: Monitor) -> Iterator[Path]:
    """Make a point's work folder; it is locked for as long as this process lives.

    Raises:
        PointError: there is no room for it.
        SourceError: it cannot be made. In any case it is gone again.
    """
    folder = Path(os.path.realpath(scratch)) / names.prefix
    if len(str(folder / SOCKET)) > _LONGEST_SOCKET:
        raise SourceError(
            "the path is too long for a unix socket",
            where=folder / SOCKET,
            hint="choose a shorter folder with --scratch",
        )
    try:
        folder.mkdir(mode=0o700)
        descriptor = _own(folder, monitor)
    except OSError as error:
        raise _unusable(scratch, error) from error
    try:
        yield folder
    finally:
        os.close(descriptor)


def _own(folder: Path, monitor: Monitor) -> int:
    """Lock a new folder that QEMU may use; gives the lock's descriptor. If it fails, both go."""
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, folder)
        give_to(folder, monitor)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, str(monitor.peer.pid).encode())
        undo.pop_all()
    return descriptor


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _unusable(scratch: Path, error: OSError) -> FleeceError:
    family = PointError if error.errno in _FULL else SourceError
    return family(
        f"the scratch folder cannot be used ({error.strerror})",
        where=scratch,
        hint="choose another one with --scratch",
    )


def give_to(path: Path, monitor: Monitor) -> None:
    """Let QEMU's user own what QEMU must open, where this process may give it away.

    Raises:
        SourceError: its file system does not let it.
    """
    if os.geteuid() == 0 and monitor.peer.uid != 0:
        try:
            os.chown(path, monitor.peer.uid, monitor.peer.gid)
        except OSError as error:
            raise SourceError(
                f"this cannot be given to QEMU's user ({error.strerror})",
                where=path,
                hint="choose another folder with --scratch",
            ) from error
