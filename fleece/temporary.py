"""Temporary files and folders; that none can be made is an error of the family of missing needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fleece.errors import UsageError

_START = "fleece-passing-"
_NAME = re.compile(rf"{_START}[a-z0-9_]{{8}}")


@contextlib.contextmanager
def temporary_folder(within: Path | None = None) -> Iterator[Path]:
    """A folder of this user's alone, for as long as the context lasts.

    It is locked for as long as this process lives, and those of processes that were killed are
    removed first.

    Args:
        within: the folder that it is made in; None: the system's own for such.

    Raises:
        UsageError: none can be made.
    """
    with _errors():
        place = Path(tempfile.gettempdir()) if within is None else within
        _remove_dead(place)
        made, lock = _locked_folder(place)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    """Make a folder, and lock it; gives it, and what holds the lock."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_START, dir=place))
        try:
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process took it for a dead one's, as it had no lock
            continue
        with contextlib.suppress(OSError):  # then nobody else can lock it either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made, lock
        os.close(lock)


def _remove_dead(place: Path) -> None:
    names: list[str] = []
    with contextlib.suppress(OSError):  # it may be one that only takes names
        names = [name for name in os.listdir(place) if _NAME.fullmatch(name)]
    for name in names:
        with contextlib.suppress(OSError):
            _remove_if_dead(place / name)


def _remove_if_dead(folder: Path) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(folder, flags)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def temporary_file() -> BinaryIO:
    """A file without a name, to write and read: nothing stays of it if this process is killed.

    Raises:
        UsageError: none can be made.
    """
    with _errors():
        return tempfile.TemporaryFile(prefix="fleece-")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"no temporary file can be made ({error.strerror})",
            where=tempfile.tempdir or os.environ.get("TMPDIR"),
            hint="TMPDIR says where they are made",
        ) from error
