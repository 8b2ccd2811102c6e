"""The scratch folder, in which each point has its work folder, and the room in it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.errors import SourceError, UsageError
from fleece.folder import PRIVATE_FOLDER, Folder

_PASSED_THROUGH = 0o711
"""The mode of a folder that others can pass through, but neither list nor change."""
_OTHERS_WRITE = 0o022

RESERVE = 256 * 1024 * 1024
"""Bytes of a scratch that are left free, or half of it if that is less."""


@dataclass(frozen=True)
class Room:
    """What a scratch can take.

    Attributes:
        left: bytes until the backup must be given up; none if it is not positive.
        state: what bounds it, in one clause.
    """

    left: int
    state: str


def room_of(state: os.statvfs_result) -> Room:
    """What a file system can take, as statvfs(3) tells."""
    free = state.f_bavail * state.f_frsize
    return Room(
        free - min(RESERVE, state.f_blocks * state.f_frsize // 2),
        f"the scratch has only {free} bytes left",
    )


def default_scratch() -> Path:
    """The scratch folder if none is named: on disk, since it can grow to what the guest writes.

    Only its user makes names in it. Root's can be passed through by QEMU's user.
    """
    user = os.geteuid()
    return Path("/var/lib/fleece/scratch") if user == 0 else Path(f"/var/tmp/fleece-{user}")


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


def opened_scratch(scratch: Path) -> Folder:
    """Open a scratch folder; the default one is made if it is not there.

    Raises:
        SourceError: the default one is somebody else's.
        OSError: it cannot be opened or made.
    """
    real = Path(os.path.realpath(scratch))
    if scratch != default_scratch():
        return Folder.open(real)
    parts = ("fleece", "scratch") if os.geteuid() == 0 else (scratch.name,)
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(Folder.open("/var/lib" if os.geteuid() == 0 else "/var/tmp"))
        for name in parts:
            here = stack.enter_context(_own_folder(here, name))
        return Folder(os.dup(here.descriptor), real)


def _own_folder(here: Folder, name: str) -> Folder:
    """Open a folder of our own, that nobody else can change; make it if nothing has the name."""
    mode = _PASSED_THROUGH if os.geteuid() == 0 else PRIVATE_FOLDER
    with contextlib.suppress(FileExistsError):
        return here.make_folder(name, mode)
    found = here.folder(name)
    state = os.fstat(found.descriptor)
    if state.st_uid != os.geteuid() or state.st_mode & _OTHERS_WRITE:
        found.close()
        raise SourceError(
            f"the default scratch folder is user {state.st_uid}'s, or others may write to it",
            where=here.path / name,
            hint="choose another one with --scratch",
        )
    return found


def doubt(scratch: Folder) -> str | None:
    """A warning if others can put something of theirs in the place of what is made in a folder."""
    state = os.fstat(scratch.descriptor)
    if state.st_uid not in (0, os.geteuid()):
        why = f"it is user {state.st_uid}'s"
    elif state.st_mode & _OTHERS_WRITE and not state.st_mode & stat.S_ISVTX:
        why = "others may write to it, and it has no sticky bit"
    else:
        return None
    return (
        f"{scratch.path}: other users can exchange what is in the scratch folder during a backup "
        f"({why}); choose a private one with --scratch"
    )


def candidates(scratch: Folder, start: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names in a scratch folder that begin like this, one at a time, each with what it is."""
    for name in scratch.names():
        if name.startswith(start):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                yield name, scratch.stat(name)
