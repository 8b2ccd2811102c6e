"""A store's folder: the one door to all that lies in it.

Whoever can write into a store must not have another file of the host read or written through it.
So what lies in it is opened name by name from the store's own folder down, and no link is followed
(`fleece.folder`). Links on the way to the store are the user's own affair.

Names are for people; what counts is in the headers (`fleece.store.catalogue`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleece.delta.blob import Blob
from fleece.errors import StoreError, UsageError
from fleece.fileblob import FileBlob
from fleece.folder import PRIVATE_FILE, Folder, Kind
from fleece.store.backend import Batch, Draft, Listing, Patience, Site
from fleece.store.errors import store_errors
from fleece.store.folder.batch import FolderBatch, partials
from fleece.store.folder.create import create
from fleece.store.folder.draft import Replacement, spooled
from fleece.store.folder.listing import look, stamp_of
from fleece.store.folder.lock import held
from fleece.store.folder.place import Place
from fleece.store.folder.removal import remove_folder
from fleece.store.names import DROPPED, PARTIAL, STEM, is_unfinished

_HINT = "is its file system mounted? 'fleece init' makes a new store"


class FolderBackend:
    """A store in a folder (`fleece.store.backend.Backend`).

    Args:
        path: the folder.
        mode: permissions of what is made there.
    """

    begins_ahead = True

    def __init__(self, path: str | os.PathLike[str], mode: int = PRIVATE_FILE) -> None:
        self.where = os.fspath(path)
        self._place = Place(Path(path), mode)

    @property
    def address(self) -> str:
        """The folder's absolute path."""
        return str(self._place.path.absolute())

    @property
    def near(self) -> bool:
        """A file system is."""
        return True

    def sharing(self, mode: int) -> FolderBackend:
        """The same; what is made through it has these permissions."""
        return FolderBackend(self.where, mode)

    def create(self, marker: bytes, site: Site | None = None) -> None:
        """Make the folder, if nothing that anybody has put there is there."""
        if site not in (None, Site()):
            raise UsageError(
                "is a folder: it is in no bucket, and nothing can be locked in it", where=self.where
            )
        create(self._place, marker)

    def check(self) -> None:
        """Raise `StoreError` if the folder is not there."""
        with store_errors(self.where):
            try:
                Folder.open(self._place.path).close()
            except (FileNotFoundError, NotADirectoryError):
                raise StoreError(
                    "there is no store here", where=self._place.path, hint=_HINT
                ) from None

    def writable(self, key: str = "") -> bool:
        """Whether this user can write into the folder of the store, a guest or a point."""
        return os.access(self.name(key), os.W_OK | os.X_OK, effective_ids=True)

    def room(self) -> int:
        """Bytes that the file system has left for this user."""
        with store_errors(self.where):
            state = os.statvfs(self._place.path)
        if state.f_files and not state.f_favail:
            raise StoreError(
                "there is no room: its file system takes no more files",
                where=self._place.path,
                hint="remove files from it",
            )
        return state.f_bavail * state.f_frsize

    def name(self, key: str) -> str:
        """The path of an object."""
        return str(self._place.path / key)

    def listing(self, guest: str | None = None) -> Listing:
        """All deltas, and what is not fleece's; of one folder, or of all."""
        with store_errors(self.where):
            return look(self._place, guest)

    def open(self, key: str) -> Blob:
        """A file to be read; it must be a regular one."""

        def opened() -> int:
            with self._place.holding(key) as (folder, name):
                return folder.file(name)

        return FileBlob(self.name(key), opened)

    def forget(self, key: str) -> bool:
        """Nothing is remembered."""
        return False

    def has(self, key: str) -> bool:
        """Whether anything has a key."""
        with store_errors(self.name(key)):
            try:
                with self._place.holding(key) as (folder, name):
                    return folder.has(name)
            except FileNotFoundError:
                return False

    def stamp(self, key: str) -> str:
        """A file's inode, length, and nanoseconds since 1970 when its content last changed."""
        with store_errors(self.name(key)), self._place.holding(key) as (folder, name):
            return stamp_of(folder.stat(name))

    def get(self, key: str, most: int) -> bytes:
        """A small file's content."""
        with store_errors(self.name(key)), self._place.holding(key) as (folder, name):
            return folder.read(name, most)

    def put(self, key: str, data: bytes) -> None:
        """Write a small file beside, and give it its name."""
        with store_errors(self.name(key)), self._place.holding(key) as (folder, name):
            folder.put(name, data, self._place.mode)

    def delete(self, key: str) -> None:
        """Remove a small file, if there is one."""
        with store_errors(self.name(key)), self._place.holding(key) as (folder, name):
            if folder.has(name):
                folder.remove(name)
                folder.sync()

    def sweep(self, key: str) -> None:
        """Remove what killed writers left of a small file."""
        with store_errors(self.name(key)), self._place.holding(key) as (folder, name):
            for left in folder.unfinished(name):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    folder.remove(left)

    @contextlib.contextmanager
    def lock(self, guest: str, name: str, patience: Patience | None = None) -> Iterator[None]:
        """Hold the lock in a guest's folder, which is made if it is not there."""
        with contextlib.ExitStack() as stack:
            with store_errors(self.where):
                folder = stack.enter_context(self._place.made_folder(guest))
            stack.enter_context(held(folder, self._place.mode, name, patience or Patience()))
            yield

    def batch(self, guest: str, name: str) -> Batch:
        """A folder whose name begins with `.partial-`."""
        with store_errors(self.where), self._place.made_folder(guest) as parent:
            parent.make_folder(f"{PARTIAL}{name}", self._place.folder_mode).close()
        return FolderBatch(self._place, guest, name)

    def left(self, guest: str) -> list[Batch]:
        """The folders of points that were not finished."""
        with store_errors(self.where), self._place.made_folder(guest) as folder:
            return [FolderBatch(self._place, guest, name) for name in partials(folder)]

    def replace(self, key: str) -> Draft:
        """A hidden file beside another."""
        return Replacement(self._place, key)

    def spool(self) -> contextlib.AbstractContextManager[Draft]:
        """A private file in the store's folder."""
        return spooled(self._place)

    def drop(self, point: str) -> Sequence[str]:
        """Rename a point's folder, then remove what is fleece's in it."""
        with store_errors(self.name(point)), self._place.holding(point) as (guest, name):
            gone = f"{DROPPED}{name[:STEM]}-{secrets.token_hex(8)}"
            guest.rename(name, gone)
            guest.sync()
            kept = remove_folder(guest, gone)
            return [] if kept is None else [str(guest.path / kept)]

    def tidy(self, points: Sequence[str]) -> Sequence[str]:
        """Remove what killed writers left in the folders of points, and dropped folders."""
        removed: list[str] = []
        with store_errors(self.where):
            for point in points:
                with self._place.folder(*self._place.names(point)) as folder:
                    removed += _tidied(folder)
            for guest in sorted({self._place.names(point)[0] for point in points}):
                with self._place.folder(guest) as folder:
                    for found in folder.entries():
                        if found.kind is Kind.FOLDER and found.name.startswith(DROPPED):
                            remove_folder(folder, found.name)
                            removed.append(str(folder.path / found.name))
        return removed


def _tidied(folder: Folder) -> Iterator[str]:
    for found in folder.entries():
        if is_unfinished(found):
            with contextlib.suppress(FileNotFoundError):  # a verification's note that is done
                folder.remove(found.name)
                yield str(folder.path / found.name)
