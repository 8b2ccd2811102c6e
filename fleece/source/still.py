"""Small files that a running machine may write at any time, read as they were at one moment.

They are read again until they come out the same twice. Their folders belong to QEMU's and swtpm's
users, whom a guest may have taken over: nothing but regular files is opened, and no link followed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
import time
from collections.abc import Callable
from typing import TypeVar

from fleece.delta.part import LARGEST
from fleece.folder import Folder, Kind

_TRIES = 10
_PAUSE = 0.05

T = TypeVar("T")
Mark = tuple[tuple[int, ...], ...]


def file_at_rest(path: str) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be read, is larger than `LARGEST`, or is being written all the time.
    """
    place, name = os.path.split(path)
    with Folder.open(place or ".") as folder:
        return _steady(path, lambda: folder.read(name, LARGEST))


def folder_at_rest(path: str, wanted: Callable[[str], bool]) -> bytes:
    """A folder's files as a tar archive; those of folders in it are not there.

    The same files give the same bytes: it has no times, no owners, and is in the order of names.

    Args:
        path: of the folder.
        wanted: whether a file of this name is to be in it.

    Raises:
        OSError: one cannot be read, they are larger than `LARGEST`, or are written all the time.
    """
    with Folder.open(path) as folder:
        return _steady(path, lambda: _packed(_files(folder, wanted)))


def mark_of(path: str) -> Mark:
    """What changes when a file is written, or one in a folder; nothing: it cannot be looked at."""
    with contextlib.suppress(OSError):
        below = sorted(entry.path for entry in os.scandir(path)) if os.path.isdir(path) else []
        return tuple(_mark(os.lstat(each)) for each in (path, *below))
    return ()


def _mark(state: os.stat_result) -> tuple[int, ...]:
    return state.st_ino, state.st_size, state.st_mtime_ns


def _steady(path: str, read: Callable[[], bytes]) -> bytes:
    before = read()
    for _ in range(_TRIES):
        after = read()
        if after == before:
            return after
        before = after
        time.sleep(_PAUSE)
    raise OSError(errno.EAGAIN, "is being written all the time", path)


def _files(folder: Folder, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """What is in a folder, by name."""
    found: dict[str, bytes] = {}
    for entry in folder.entries():
        if entry.kind is Kind.FILE and wanted(entry.name):
            found[entry.name] = folder.read(entry.name, LARGEST - sum(map(len, found.values())))
    return found


def _packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, data in sorted(files.items()):
            told = tarfile.TarInfo(name)
            told.size, told.mode = len(data), stat.S_IRUSR | stat.S_IWUSR
            made.addfile(told, io.BytesIO(data))
    return buffer.getvalue()
