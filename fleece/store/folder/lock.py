"""The lock of one guest in a store: a file `.lock` in the guest's folder.

It is flock(2): it dies with its holder, and NFS has it too. But any open descriptor can hold one,
a read-only one as well; and with locks that want a writable one (fcntl(2), F_OFD_SETLK) a reader
could still take a shared lock, which keeps writers out. So only those can open the file who may
write into the store. One that others can open is mended if it is ours, and refused if it is not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
from collections.abc import Iterator

from fleece import flock
from fleece.errors import StoreError
from fleece.folder import PRIVATE_FILE, Folder
from fleece.store.backend import Patience
from fleece.store.errors import store_errors
from fleece.store.names import LOCK

_TRIES = 100
"""Times that the file may be replaced while it is opened."""


@contextlib.contextmanager
def held(
    folder: Folder, mode: int, guest: str, patience: Patience, store: str | None = None
) -> Iterator[None]:
    """Hold a guest's lock.

    Args:
        folder: the guest's.
        mode: permissions of the store's files.
        guest: for messages.
        patience: how long to wait for another holder.
        store: its name in messages; None: the folder is in it.

    Raises:
        Interrupted: the waiting was cancelled.
        StoreError: another process holds it, somebody could who may not write into the store, it is
            no plain file, or the file system cannot lock.
    """
    with store_errors(folder.path / LOCK):
        descriptor = _locked(folder, mode, guest, patience, store or str(folder.path.parent))
    try:
        _sign(descriptor)
        yield
    finally:
        with contextlib.suppress(OSError):  # it is closed then too, and so nobody holds the lock
            os.close(descriptor)


def _locked(folder: Folder, mode: int, guest: str, patience: Patience, store: str) -> int:
    """The lock file, locked, and still the one that has the name."""
    allowed = PRIVATE_FILE | (0o060 if mode & stat.S_IWGRP else 0)
    for _ in range(_TRIES):
        descriptor = folder.lasting_file(LOCK, allowed)
        try:
            _check(folder, descriptor, allowed)
            flock.take(
                descriptor,
                patience.seconds,
                patience.cancel,
                functools.partial(_busy, store, descriptor, guest),
            )
            if _is_named(folder, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise StoreError("is replaced again and again", where=folder.path / LOCK)


def _check(folder: Folder, descriptor: int, allowed: int) -> None:
    """See to it that only those who can write into the folder can open the lock."""
    found, around = os.fstat(descriptor), os.fstat(folder.descriptor)
    alone = found.st_nlink == 1  # else the file may be another one, that has this name too
    if found.st_uid == os.geteuid() and alone and stat.S_IMODE(found.st_mode) != allowed:
        with contextlib.suppress(OSError):  # where there are no modes, the mount decides
            os.fchmod(descriptor, allowed)
        return
    if around.st_mode & stat.S_IWGRP and around.st_gid == found.st_gid:
        allowed |= 0o060
    if around.st_mode & stat.S_IWOTH:
        allowed |= 0o066
    if found.st_mode & 0o066 & ~allowed and not _mount_decides(folder, found):
        raise StoreError(
            f"can be held by users who may not write there (mode {found.st_mode & 0o777:04o}, "
            f"owner {found.st_uid}, {found.st_nlink} names)",
            where=folder.path / LOCK,
            hint="remove it while no backup of this guest runs",
        )


def _mount_decides(folder: Folder, lock: os.stat_result) -> bool:
    """Whether files have the lock's owner and mode whoever makes them: a removal would not help."""
    name = f"{LOCK}{secrets.token_hex(8)}"
    os.close(folder.new_file(name))
    try:
        made = folder.stat(name)
    finally:
        folder.remove(name)
    return (made.st_uid, made.st_mode) == (lock.st_uid, lock.st_mode)


def _busy(store: str, descriptor: int, guest: str) -> StoreError:
    holder = _holder(descriptor)
    return StoreError(
        f"another backup of {guest} into this store is running (process {holder})",
        where=store,
        busy=True,
    )


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 64, 0)
    return text.decode() if text.isdigit() else "unknown"


def _is_named(folder: Folder, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.stat(LOCK))
    return False


def _sign(descriptor: int) -> None:
    """Say who holds it, for messages alone: a full store must not keep prune from making room."""
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_nlink == 1:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
