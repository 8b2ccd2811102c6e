"""A delta that comes in from outside, until it is known what it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import StoreError
from fleece.folder import PRIVATE_FILE, Folder, Kind
from fleece.store.catalogue import Access, Entry
from fleece.store.errors import store_errors
from fleece.store.names import PARTIAL, SPOOL, final_name
from fleece.store.removal import remove_folder
from fleece.store.root import Root
from fleece.store.sink import DeltaFile


@contextlib.contextmanager
def spooled(root: Root) -> Iterator[DeltaFile]:
    """A private file in a store's folder, for a delta that is not known yet.

    Afterwards it is gone, if `Store.take_in` did not take it. What a killed process left of
    such files is removed first.
    """
    name = f"{SPOOL}{secrets.token_hex(8)}"
    with store_errors(root.path), root.folder() as folder:
        _remove_left(folder)
        file = DeltaFile(root.path / name, folder.new_file(name, PRIVATE_FILE))
        file.hold()
    try:
        yield file
    finally:
        file.abandon()
        with contextlib.suppress(OSError), root.folder() as folder:
            folder.remove(name)


def _remove_left(folder: Folder) -> None:
    for found in folder.entries():
        if found.name.startswith(SPOOL) and found.kind is Kind.FILE:
            # Another user's, who shares the store, is theirs to remove.
            with contextlib.suppress(FileNotFoundError, BlockingIOError, PermissionError):
                descriptor = folder.file(found.name)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    folder.remove(found.name)
                finally:
                    os.close(descriptor)


def take_in(access: Access, file: DeltaFile, entry: Entry, beside: Entry | None) -> Path:
    """Give a spooled delta its place (`Store.take_in`).

    Raises:
        OSError: the store cannot be written.
        StoreError: something else has its name.
    """
    head, root = entry.header, access.root
    name = access.delta_name(head.disk)
    file.set_mode(root.mode)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(root.folder())
        if beside is not None:
            point = stack.enter_context(root.folder(*root.names(beside.path)[:-1]))
            return _beside(store, file, point, name)
        guest = stack.enter_context(root.made_folder(access.file_name(head.guest)))
        point_name = access.point_name(head.point.id)
        final = final_name(point_name, head.point.sequence)
        if guest.has(final):
            return _beside(store, file, stack.enter_context(guest.folder(final)), name)
        _remove_partials(guest, f"{PARTIAL}{point_name}-")
        partial = f"{PARTIAL}{point_name}-{secrets.token_hex(8)}"
        with guest.make_folder(partial, root.folder_mode) as made:
            store.rename(file.path.name, name, made)
            made.sync()
        guest.rename(partial, final)
        guest.sync()
        return guest.path / final / name


def _beside(store: Folder, file: DeltaFile, point: Folder, name: str) -> Path:
    """Give it a name that must be free; the lock on the guest keeps it so."""
    if point.has(name):
        raise StoreError(
            "is there already, and it is no whole delta",
            where=point.path / name,
            hint="move it away first",
        )
    store.rename(file.path.name, name, point)
    point.sync()
    return point.path / name


def _remove_partials(guest: Folder, start: str) -> None:
    """Remove what imports of a point that were killed left of it."""
    for found in guest.entries():
        if found.kind is Kind.FOLDER and found.name.startswith(start):
            remove_folder(guest, found.name)
