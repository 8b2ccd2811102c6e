"""The lock that the engines of one host share for a guest of a store in a bucket.

It only has them wait for one another, as in a folder. Between hosts nothing is locked: whoever made
a change up from an older state than the newest cannot make it (`fleece.store.s3.change`). So it may
be lost, or be another one in another container, and no point is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator

from fleece.folder import PRIVATE_FILE, Folder
from fleece.private import private_folder, runtime_folder
from fleece.store.backend import Patience
from fleece.store.errors import store_errors
from fleece.store.folder.lock import held

_WRITER = "writer"
_LIVING = "writes-"
_DIGITS = 8


def opened() -> contextlib.AbstractContextManager[Folder]:
    """That folder, made if it is not there.

    Raises:
        OSError: it cannot be made, or it is somebody else's.
    """
    return private_folder(runtime_folder())


def writer() -> str:
    """What the engines that share the locks write into the names of objects.

    It is drawn once for the folder of the locks. So it dies with them, and an engine in another
    container, on another host or after a restart has another.

    Raises:
        StoreError: the folder cannot be used.
    """
    with store_errors(runtime_folder()), opened() as folder:
        with contextlib.suppress(FileExistsError):
            if not folder.has(_WRITER):
                name = f".{_WRITER}-{secrets.token_hex(8)}"
                folder.put_new(name, secrets.token_hex(16).encode(), PRIVATE_FILE)
                _link(folder, name)
        return hashlib.sha256(folder.read(_WRITER, 64)).hexdigest()[:_DIGITS]


def _link(folder: Folder, name: str) -> None:
    try:
        os.link(name, _WRITER, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    finally:
        folder.remove(name)


@contextlib.contextmanager
def locked(store: str, guest: str, name: str, patience: Patience) -> Iterator[None]:
    """Hold the lock of a guest.

    Args:
        store: its address.
        guest: its key.
        name: its name in messages.
        patience: how long to wait for another holder.

    Raises:
        Interrupted: the waiting was cancelled.
        StoreError: another process of this host holds it, or there can be no locks.
    """
    own = hashlib.sha256(f"{store}\0{guest}".encode()).hexdigest()[:32]
    with contextlib.ExitStack() as stack:
        with store_errors(runtime_folder()):
            folder = stack.enter_context(opened())
            with contextlib.suppress(FileExistsError):
                folder.make_folder(own).close()
            mine = stack.enter_context(folder.folder(own))
        stack.enter_context(held(mine, PRIVATE_FILE, name, patience, store))
        yield


@contextlib.contextmanager
def living(name: str) -> Iterator[None]:
    """Show to the other engines of this host that this process lives, and writes something."""
    with store_errors(runtime_folder()), opened() as folder:
        descriptor = folder.new_file(f"{_LIVING}{name}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError), opened() as folder:
            folder.remove(f"{_LIVING}{name}")
        os.close(descriptor)


def lives(name: str) -> bool:
    """Whether a process does that writes something; if not, nothing tells of it any more."""
    with store_errors(runtime_folder()), opened() as folder:
        try:
            descriptor = folder.file(f"{_LIVING}{name}")
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        folder.remove(f"{_LIVING}{name}")
        return False
