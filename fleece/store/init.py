"""Make a new store. Nothing else does: a store that is missing is an error everywhere else."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import StoreError, UsageError
from fleece.folder import Folder, Kind
from fleece.keys import Secret
from fleece.naming import name_new
from fleece.store.errors import store_errors
from fleece.store.loose import open_delta
from fleece.store.marker import Marker, StoreWishes
from fleece.store.names import MARKER, NEW_MARKER, SPOOL, is_furniture
from fleece.store.open import folder_of, open_store
from fleece.store.store import Store


def init(
    path: str | os.PathLike[str],
    secret: Secret | None = None,
    wishes: StoreWishes | None = None,
    like: str | os.PathLike[str] | None = None,
) -> Store:
    """Make a store where nothing or an empty folder is.

    Args:
        path: the folder, as `open_store` takes it; folders on the way to it are made too.
        secret: the key file or passphrase of a store with a key.
        wishes: how it shall be; None: as private as can be, without a key.
        like: a store, or a delta: the new store has its hash, its key and its encryption, so that
            it can take in deltas of that store. The wishes then say the mode alone.

    Raises:
        StoreError: a store or something else is there, or it cannot be made. Of several that make
            one at once all but the first fail so.
        UsageError: the wishes contradict the secret, or `like`; or there are no such stores.
    """
    wishes = wishes or StoreWishes()
    folder = Path(folder_of(path))
    if not is_free(folder):
        raise _taken(folder)
    marker = Marker.new(wishes, secret) if like is None else _like(like, secret, wishes)
    with store_errors(folder), _made(folder, marker.folder_mode) as made:
        _place(made, marker, marker.to_text(secret))
    store = open_store(folder, secret)
    if store.id != marker.id:  # where there are no hard links, two can place theirs
        raise _taken(folder)
    return store


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a store can be made: nothing is there, or nothing that anybody has put there.

    What file systems and NASes have in an empty folder does not count, nor what a killed attempt
    to make a store left.
    """
    with store_errors(path):
        try:
            folder = Folder.open(path)
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False
        with folder:
            return all(
                is_furniture(found)
                or (found.kind is Kind.FILE and found.name.startswith((NEW_MARKER, SPOOL)))
                for found in folder.entries()
            )


def _taken(folder: Path) -> StoreError:
    with store_errors(folder):
        if os.path.lexists(folder / MARKER):
            return StoreError(
                "is a store already", where=folder, hint="use it as it is; nothing was changed"
            )
        return StoreError(
            "is no empty folder",
            where=folder,
            hint="a new store is made in a folder that is empty or not there yet",
        )


def _like(like: str | os.PathLike[str], secret: Secret | None, wishes: StoreWishes) -> Marker:
    if wishes.hash is not None or wishes.encrypt:
        raise UsageError("a store that is like another has its hash and its encryption")
    if os.path.isdir(folder_of(like)):
        store = open_store(like, secret)
        return Marker.like(store.algorithm.name, store.protection, wishes.mode)
    with open_delta(like, secret) as delta:
        return Marker.like(delta.geometry.algorithm.name, delta.protection, wishes.mode)


@contextlib.contextmanager
def _made(folder: Path, mode: int) -> Iterator[Folder]:
    """The folder, made with those on the way to it; if what is done in it fails, they go again."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Folder.open(folder.parent) as parent, contextlib.suppress(FileExistsError):
            parent.make_folder(folder.name, mode).close()
        with Folder.open(folder) as made:
            yield made
        for place in new:
            with Folder.open(place.parent) as parent:
                parent.sync()
    except BaseException:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def _place(folder: Folder, marker: Marker, text: str) -> None:
    """Write the marker if none is there; another process may do so at the same time."""
    temporary = f"{NEW_MARKER}{secrets.token_hex(8)}"
    try:
        folder.put_new(temporary, text.encode(), marker.mode)
        name_new(temporary, MARKER, folder.descriptor)
    except (FileExistsError, FileNotFoundError):
        # If its file is gone, or the name is taken, another process has placed one.
        if folder.has(MARKER):
            raise _taken(folder.path) from None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            folder.remove(temporary)
    for found in folder.entries():
        if found.name.startswith(NEW_MARKER) and found.kind is Kind.FILE:
            with contextlib.suppress(FileNotFoundError):
                folder.remove(found.name)
    folder.sync()
