"""A point that is being written into a bucket, and what a killed writer left of one."""

from __future__ import annotations

from typing import NoReturn

from fleece.attempts import Attempts
from fleece.delta.blob import Blob
from fleece.errors import DeltaError, StoreError
from fleece.store.errors import Gone
from fleece.store.s3.change import Change
from fleece.store.s3.ledger import Ledger, Overtaken
from fleece.store.s3.names import DATA, DataFolder
from fleece.store.s3.reading import Reading
from fleece.store.s3.upload import Crew, Upload


class ObjectBatch:
    """Objects that one change makes seen (`fleece.store.backend.Batch`).

    Args:
        ledger: of the store.
        guest: its key.
        name: of the batch.
        writer: who writes it.
    """

    def __init__(self, ledger: Ledger, guest: str, name: str, writer: str) -> None:
        self.name = name
        self._ledger, self._guest = ledger, guest
        self._base = ledger.base(guest)
        self._folder = DataFolder.new(name, self._base, writer)
        self._under = f"{guest}/{DATA}/{self._folder.name}"
        self.where = ledger.name(self._under)
        self._reading = Reading(ledger)
        self._crew = Crew()
        self._made: dict[str, Upload] = {}
        self._doubtful = False

    def names(self) -> list[str]:
        """Of the deltas in it."""
        return [*self._made]

    def open(self, name: str) -> Blob:
        """An object that is whole."""
        try:
            return self._reading.open(self._key(name), own=True)
        except Gone as error:
            raise DeltaError(error.what, where=error.where) from error

    def create(self, name: str, most: int | None = None) -> Upload:
        """A new object."""
        if name in self._made:
            raise StoreError("exists already", where=f"{self.where}/{name}")
        key = self._ledger.key(self._key(name))
        self._made[name] = Upload(self._ledger.bucket, key, self._crew, most)
        return self._made[name]

    def reopen(self, name: str, keep: int) -> NoReturn:
        """Nothing that was begun can be read, nor cut."""
        raise _unreadable(f"{self.where}/{name}")

    def seal(self) -> None:
        """Make all objects whole."""
        for name, made in self._made.items():
            made.finish()
            self._reading.made(self._key(name), made)
        self._crew.close()

    def commit(self, name: str) -> None:
        """Make the next change, if nobody else did meanwhile."""
        if name in self._ledger.view(self._guest).points:
            raise StoreError("exists already", where=self._ledger.name(f"{self._guest}/{name}"))
        change = Change(name, {one: self._key(one) for one in self._made})
        self._ledger.retention.begin([self._ledger.key(key) for key in change.objects.values()])
        self._doubtful = True
        try:
            self._ledger.append(self._guest, change, self._base)
        except Overtaken:
            self._doubtful = False
            raise

    def discard(self) -> None:
        """Remove the objects, unless nobody knows whether they are seen: the next run finds out."""
        for made in self._made.values():
            with self._ledger.cleaning() as bucket:
                made.abort(bucket)
        self._crew.close()
        if not self._doubtful and self._made:
            with self._ledger.cleaning() as bucket:
                bucket.delete([self._ledger.key(self._key(name)) for name in self._made])

    def _key(self, name: str) -> str:
        return f"{self._under}/{name}"


class LeftBatch:
    """What a killed writer left of a point: it can be discarded, and nothing else.

    Args:
        ledger: of the store.
        guest: its key.
        folder: what it lies in.
    """

    def __init__(self, ledger: Ledger, guest: str, folder: DataFolder) -> None:
        self.name = folder.stem
        self.where = ledger.name(f"{guest}/{DATA}/{folder.name}")
        self._ledger, self._guest, self._folder = ledger, guest, folder

    def names(self) -> list[str]:
        """None that could be read."""
        return []

    def open(self, name: str) -> NoReturn:
        """Parts of an object cannot be read."""
        raise DeltaError("is not whole, and cannot be read", where=f"{self.where}/{name}")

    def create(self, name: str, most: int | None = None) -> NoReturn:
        """Nobody goes on with it."""
        raise _unreadable(self.where)

    def reopen(self, name: str, keep: int) -> NoReturn:
        """Nobody goes on with it."""
        raise _unreadable(self.where)

    def seal(self) -> None:
        """Nothing is to be written."""
        raise _unreadable(self.where)

    def commit(self, name: str) -> None:
        """Nobody goes on with it."""
        raise _unreadable(self.where)

    def discard(self) -> None:
        """Remove it, when it is certain that it will never be seen."""
        remove_left(self._ledger, self._guest, [self._folder])


def remove_left(ledger: Ledger, guest: str, folders: list[DataFolder]) -> list[str]:
    """Remove what is not seen of some folders; gives its names in messages.

    Raises:
        StoreError: some of it cannot be removed; all was tried.
    """
    if any(folder.base >= ledger.view(guest).head for folder in folders):
        ledger.fence(guest)
    view = ledger.view(guest)
    used, names = view.used(), {folder.name for folder in folders}
    unused = [
        key
        for folder, objects in view.folders.items()
        if folder.name in names
        for key in objects
        if key not in used
    ]
    unused = sorted(ledger.free(unused))
    tried = Attempts()
    with tried.step():
        ledger.remove(unused)
        for objects in view.folders.values():
            for key in unused:
                objects.pop(key, None)
    begun = [(f, upload) for f, upload in ledger.uploads(guest) if f.name in names]
    for _, upload in begun:
        with tried.step():
            ledger.abort(guest, upload)
    tried.settle(StoreError)
    where = {ledger.name(key.rpartition("/")[0]) for key in unused}
    return sorted(where | {ledger.name(f"{guest}/{DATA}/{f.name}") for f, _ in begun})


def _unreadable(where: str) -> StoreError:
    return StoreError("cannot be resumed: parts of an object cannot be read", where=where)
