"""Points that are being written, or that a writer who was killed left unfinished."""

from __future__ import annotations

import os

from fleece.delta.blob import Blob
from fleece.fileblob import FileBlob
from fleece.folder import Folder, Kind
from fleece.store.errors import store_errors
from fleece.store.folder.place import Place
from fleece.store.folder.removal import remove_folder
from fleece.store.folder.sink import DeltaFile
from fleece.store.names import PARTIAL, is_delta


def partials(guest: Folder) -> list[str]:
    """The names of the batches in a guest's folder."""
    found = guest.entries()
    return [
        one.name.removeprefix(PARTIAL)
        for one in found
        if one.kind is Kind.FOLDER and one.name.startswith(PARTIAL)
    ]


class FolderBatch:
    """A folder that is renamed when all is in it (`fleece.store.backend.Batch`).

    Args:
        place: the store's.
        guest: the name of the guest's folder.
        name: of the batch.
    """

    def __init__(self, place: Place, guest: str, name: str) -> None:
        self.name = name
        self._place = place
        self._guest = guest
        self._folder = f"{PARTIAL}{name}"
        self._path = place.path / guest / self._folder
        self.where = str(self._path)
        self._files: list[DeltaFile] = []

    def names(self) -> list[str]:
        """Of the deltas in it."""
        with store_errors(self.where), self._place.folder(self._guest, self._folder) as folder:
            return [found.name for found in folder.entries() if is_delta(found)]

    def open(self, name: str) -> Blob:
        """What is there of a file."""

        def opened() -> int:
            with self._place.folder(self._guest, self._folder) as folder:
                return folder.file(name)

        return FileBlob(str(self._path / name), opened)

    def create(self, name: str, most: int | None = None) -> DeltaFile:
        """A new file."""
        path = self._path / name
        with store_errors(path), self._place.folder(self._guest, self._folder) as folder:
            made = DeltaFile(path, folder.new_file(name, self._place.mode))
        self._files.append(made)
        return made

    def reopen(self, name: str, keep: int) -> DeltaFile:
        """A file that is there, cut; it must have no other name."""
        path = self._path / name
        with store_errors(path), self._place.folder(self._guest, self._folder) as folder:
            made = DeltaFile(path, folder.file(name, os.O_RDWR, sole=True), keep=keep)
        self._files.append(made)
        return made

    def seal(self) -> None:
        """fsync the files and the folder."""
        with store_errors(self.where), self._place.folder(self._guest, self._folder) as folder:
            for file in self._files:
                file.close_durably()
            folder.sync()

    def commit(self, name: str) -> None:
        """Rename the folder."""
        with store_errors(self.where), self._place.folder(self._guest) as guest:
            guest.rename(self._folder, name)
            guest.sync()

    def discard(self) -> None:
        """Remove what is fleece's in the folder, and the folder if nothing else is there."""
        for file in self._files:
            file.abandon()
        with store_errors(self.where), self._place.folder(self._guest) as guest:
            remove_folder(guest, self._folder)
