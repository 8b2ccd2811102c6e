"""Single deltas that nobody sees yet: one for another's place, or one that comes from outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator

from fleece.delta.blob import Blob
from fleece.errors import StoreError
from fleece.fileblob import FileBlob
from fleece.folder import PRIVATE_FILE, Folder, Kind
from fleece.store.errors import store_errors
from fleece.store.folder.place import Place
from fleece.store.folder.removal import remove_folder
from fleece.store.folder.sink import DeltaFile
from fleece.store.names import MERGING, PARTIAL, SPOOL, STEM


class _Draft:
    """A hidden file of a store.

    Args:
        place: the store's.
        key: of the file.
        mode: its permissions.
    """

    def __init__(self, place: Place, key: str, mode: int) -> None:
        self.key = key
        self._store = place
        self._path = place.path / key
        with store_errors(self._path), place.holding(key) as (folder, name):
            self.sink = DeltaFile(self._path, folder.new_file(name, mode))

    def seal(self) -> None:
        """fsync and close it."""
        with store_errors(self._path):
            self.sink.close_durably()

    def open(self) -> Blob:
        """What was written."""

        def opened() -> int:
            with self._store.holding(self.key) as (folder, name):
                return folder.file(name)

        return FileBlob(str(self._path), opened)

    def discard(self) -> None:
        """Remove it, as far as that is possible."""
        self.sink.abandon()
        with contextlib.suppress(OSError), self._store.holding(self.key) as (folder, name):
            folder.remove(name)


class Replacement(_Draft):
    """A file beside another whose place it takes by one rename."""

    def __init__(self, place: Place, key: str) -> None:
        point, _, name = key.rpartition("/")
        temporary = f".{name[:STEM]}{MERGING}-{secrets.token_hex(8)}"
        super().__init__(place, f"{point}/{temporary}", place.mode)

    def place(self, key: str) -> None:
        """Take the place of a file of the same folder."""
        with store_errors(self._store.path / key), self._store.holding(key) as (folder, name):
            folder.rename(self._path.name, name)
            folder.sync()


class Spooled(_Draft):
    """A private file in a store's folder, for a delta that is not known yet."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, f"{SPOOL}{secrets.token_hex(8)}", PRIVATE_FILE)
        try:
            with store_errors(self._path):
                self.sink.hold()
        except BaseException:
            self.discard()
            raise

    def place(self, key: str) -> None:
        """Give it its place; the guest's lock must be held."""
        with store_errors(self._store.path):
            guest_name, point_name, name = self._store.names(key)
            self.sink.set_mode(self._store.mode)
            with self._store.folder() as store, self._store.made_folder(guest_name) as guest:
                if guest.has(point_name):
                    with guest.folder(point_name) as point:
                        self._beside(store, point, name)
                else:
                    self._alone(store, guest, point_name, name)

    def _beside(self, store: Folder, point: Folder, name: str) -> None:
        """Give it a name that must be free; the lock on the guest keeps it so."""
        if point.has(name):
            raise StoreError(
                "exists already, and is not a whole delta",
                where=point.path / name,
                hint="move it away first",
            )
        store.rename(self.key, name, point)
        point.sync()

    def _alone(self, store: Folder, guest: Folder, final: str, name: str) -> None:
        """Make the point's folder."""
        start = f"{PARTIAL}{final.partition('-')[2]}-"
        for found in guest.entries():  # what imports of this point that were killed left of it
            if found.kind is Kind.FOLDER and found.name.startswith(start):
                remove_folder(guest, found.name)
        partial = f"{start}{secrets.token_hex(8)}"
        with guest.make_folder(partial, self._store.folder_mode) as made:
            store.rename(self.key, name, made)
            made.sync()
        guest.rename(partial, final)
        guest.sync()


@contextlib.contextmanager
def spooled(place: Place) -> Iterator[Spooled]:
    """A new one. Afterwards it is gone, if it has no place.

    What a killed process left of such files is removed first.
    """
    with store_errors(place.path), place.folder() as folder:
        _remove_left(folder)
    draft = Spooled(place)
    try:
        yield draft
    finally:
        draft.discard()


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
