"""Single deltas that nobody sees yet: one for another's place, or one that comes from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fleece.delta.blob import Blob
from fleece.errors import StoreError
from fleece.store.s3 import lock
from fleece.store.s3.change import Change
from fleece.store.s3.ledger import Ledger, Overtaken
from fleece.store.s3.names import DATA, SPOOL, DataFolder, spool_key, spool_writer
from fleece.store.s3.reading import Reading
from fleece.store.s3.upload import Crew, Upload


class _Draft:
    """An object that no change names yet.

    Args:
        ledger: of the store.
        key: of the object, below the store's prefix.
    """

    kind = Upload

    def __init__(self, ledger: Ledger, key: str) -> None:
        self.key = key
        self._ledger = ledger
        self._crew = Crew()
        self._settled = False
        self.sink = self.kind(ledger.bucket, ledger.key(key), self._crew)

    def seal(self) -> None:
        """Make it whole."""
        self.sink.finish()
        self._crew.close()

    def open(self) -> Blob:
        """What was written."""
        return Reading(self._ledger).open(self.key)

    def discard(self) -> None:
        """Remove it, as far as that is possible, unless it is seen, or nobody knows."""
        with self._ledger.cleaning() as bucket:
            self.sink.abort(bucket)
        self._crew.close()
        if not self._settled:
            with self._ledger.cleaning() as bucket:
                bucket.delete([self._ledger.key(self.key)])

    def _change(self, guest: str, point: str, name: str) -> None:
        """Have a point hold this object under a name, beside what it holds."""
        held = self._ledger.view(guest).points.get(point, {})
        self._ledger.retention.begin([self._ledger.key(self.key)])
        self._settled = True
        try:
            self._ledger.append(guest, Change(point, {**held, name: self.key}))
        except Overtaken:
            self._settled = False
            raise


class Replacement(_Draft):
    """An object that takes another's place in its point.

    Args:
        ledger: of the store.
        key: what it shall replace: guest, point and name.
        writer: who writes it.
    """

    def __init__(self, ledger: Ledger, key: str, writer: str) -> None:
        guest, point, name = key.split("/")
        folder = DataFolder.new(point, ledger.base(guest), writer)
        super().__init__(ledger, f"{guest}/{DATA}/{folder.name}/{name}")

    def place(self, key: str) -> None:
        """Take the place; the old object is removed, which may be left to the next prune."""
        guest, point, name = key.split("/")
        old = self._ledger.view(guest).points.get(point, {}).get(name)
        self._change(guest, point, name)
        if old is not None:
            with contextlib.suppress(StoreError):
                self._ledger.remove([old])


class _Incoming(Upload):
    """An object that is whole as soon as it is asked to be durable."""

    def sync(self) -> None:
        """Make it whole."""
        self.finish()


class Spooled(_Draft):
    """An object for a delta that is not known yet. It can stay where it is: a change names it.

    Args:
        ledger: of the store.
        key: of the object; nobody uses it.
    """

    kind = _Incoming

    def place(self, key: str) -> None:
        """Give it its place; the guest's lock must be held."""
        guest, point, name = key.split("/")
        if name in self._ledger.view(guest).points.get(point, {}):
            raise StoreError("exists already", where=self._ledger.name(key))
        self._change(guest, point, name)


@contextlib.contextmanager
def spooled(ledger: Ledger, writer: str) -> Iterator[Spooled]:
    """A new one. Afterwards it is gone, if it has no place.

    What killed writers of this host left of such is removed first, as far as that is possible.
    """
    _remove_left(ledger, writer)
    key = spool_key(writer)
    with lock.living(key.rpartition("/")[2]):
        draft = Spooled(ledger, key)
        try:
            yield draft
        finally:
            draft.discard()


def _remove_left(ledger: Ledger, writer: str) -> None:
    """Remove what nobody writes any more, and no point has."""
    names = ledger.spooled()
    dead = [name for name in names if spool_writer(name) == writer and not lock.lives(name)]
    if dead:
        ledger.all()
        used = {key for view in ledger.views.values() for key in view.used()}
        keys = [f"{SPOOL}/{name}" for name in dead]
        with contextlib.suppress(StoreError):
            ledger.remove_spooled([key for key in keys if key not in used])
