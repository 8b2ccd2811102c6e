"""Make the folder of a new store."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import StoreError
from fleece.folder import Folder, Kind
from fleece.naming import name_new
from fleece.store.errors import store_errors
from fleece.store.folder.place import Place
from fleece.store.names import MARKER, NEW_MARKER, SPOOL, is_furniture
from fleece.there import is_taken


def create(place: Place, marker: bytes) -> None:
    """Make a folder with a marker (`Backend.create`); folders on the way to it are made too."""
    if not is_free(place.path):
        raise taken(place.path)
    with store_errors(place.path), _made(place.path, place.folder_mode) as made:
        _place(made, marker, place.mode)


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


def taken(folder: Path) -> StoreError:
    """Why no store can be made there."""
    with store_errors(folder):
        if os.path.lexists(folder / MARKER):
            return StoreError(
                "is a store already", where=folder, hint="use it as it is; nothing was changed"
            )
        return StoreError(
            "is not an empty folder",
            where=folder,
            hint="a new store is made in a folder that is empty or not there yet",
        )


@contextlib.contextmanager
def _made(folder: Path, mode: int) -> Iterator[Folder]:
    """The folder, made with those on the way to it; if what is done in it fails, they go again."""
    new = [place for place in (folder, *folder.parents) if not is_taken(place)]
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


def _place(folder: Folder, marker: bytes, mode: int) -> None:
    """Write the marker if none is there; another process may do so at the same time."""
    temporary = f"{NEW_MARKER}{secrets.token_hex(8)}"
    try:
        folder.put_new(temporary, marker, mode)
        name_new(temporary, MARKER, folder.descriptor)
    except (FileExistsError, FileNotFoundError):
        # If its file is gone, or the name is taken, another process has placed one.
        if folder.has(MARKER):
            raise taken(folder.path) from None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            folder.remove(temporary)
    for found in folder.entries():
        if found.name.startswith(NEW_MARKER) and found.kind is Kind.FILE:
            with contextlib.suppress(FileNotFoundError):
                folder.remove(found.name)
    folder.sync()
