"""Remove a work folder, of whatever source: each file by its name, and then the folder."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Collection, Iterator

from fleece.attempts import Attempts
from fleece.source.base import Removed
from fleece.source.workfolder import LOCK, QEMU_FOLDER, WorkFolder, is_known


def remove_work_folder(
    work: WorkFolder, tried: Attempts, kept: Collection[str] = ()
) -> Iterator[Removed]:
    """Remove a work folder's files, and then the folder, if nothing of it must stay.

    The lock goes last, because it says whose the others are.

    Args:
        work: the folder.
        tried: is told of what cannot be removed.
        kept: what must stay in it.
    """
    before = len(tried.failures)
    names: list[str] = []
    with tried.step():
        names = sorted(name for name in work.folder.names() if is_known(name) and name not in kept)
    for name in names:
        if name not in (QEMU_FOLDER, LOCK):
            with tried.step(), contextlib.suppress(FileNotFoundError):
                work.folder.remove(name)
    if QEMU_FOLDER in names:
        with tried.step(), contextlib.suppress(FileNotFoundError):
            _remove_qemu_folder(work)
    if kept or len(tried.failures) > before:
        return
    with tried.step(), contextlib.suppress(FileNotFoundError):
        with contextlib.suppress(FileNotFoundError):
            work.folder.remove(LOCK)
        work.remove_itself()
        yield Removed("scratch", str(work.path))


def _remove_qemu_folder(work: WorkFolder) -> None:
    """Remove QEMU's sockets and their folder; whatever else its user put there keeps it."""
    with work.folder.folder(QEMU_FOLDER) as theirs:
        for name in theirs.names():
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(theirs.stat(name).st_mode):
                    theirs.remove(name)
    work.folder.remove_empty(QEMU_FOLDER)
