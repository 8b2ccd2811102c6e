"""A store in a bucket (`fleece.store.backend.Backend`).

What is seen of a guest is what its changes say (`view`), and each change is made from a known state
(`ledger`): so engines of several hosts never undo one another's work, without a lock between them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from fleece.delta.blob import Blob
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.folder import PRIVATE_FILE
from fleece.store.backend import Batch, Draft, Kept, Listing, Patience, Site, Usage
from fleece.store.errors import Gone
from fleece.store.names import MARKER, SUFFIX, is_mark
from fleece.store.s3 import lock
from fleece.store.s3.account import hidden_by, unaccounted
from fleece.store.s3.batch import LeftBatch, ObjectBatch, remove_left
from fleece.store.s3.change import Change
from fleece.store.s3.client.answers import Listed
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.problems import Taken
from fleece.store.s3.draft import Replacement, spooled
from fleece.store.s3.ledger import Ledger
from fleece.store.s3.names import ALONE, NOTES, DataFolder
from fleece.store.s3.reading import Reading

_LONGEST_MARKER = 4096
_HINT = "'fleece init' makes a new store"


class S3Backend:
    """A store in a bucket.

    Args:
        bucket: where; its address names the store.
        mode: permissions of what is made, which there are none of.
    """

    def __init__(self, bucket: Bucket, mode: int = PRIVATE_FILE) -> None:
        self.where = str(bucket.address)
        self._bucket, self._mode = bucket, mode
        self._ledger = Ledger(bucket)
        self._reading = Reading(self._ledger)
        self._marker: bytes | None = None
        self._honest = False

    @functools.cached_property
    def writer(self) -> str:
        """Which engines share this one's locks."""
        return lock.writer()

    def usage(self) -> Mapping[str, Usage]:
        """By the right that each needs, which is what bills are by, too."""
        found = self._bucket.traffic.usage
        return {action.removeprefix("s3:"): found[action] for action in sorted(found)}

    @property
    def address(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return self.where

    @property
    def near(self) -> bool:
        """Traffic has a price, both ways."""
        return False

    def sharing(self, mode: int) -> S3Backend:
        """The same: who may read and write is the bucket's affair."""
        made = S3Backend(self._bucket, mode)
        made._marker = self._marker
        return made

    def retaining(self, days: int) -> S3Backend:
        """The same; new points are locked for so many days."""
        made = self.sharing(self._mode)
        made._ledger.retention.days = days
        return made

    def retain(self, keys: Sequence[str]) -> None:
        """Lock deltas as long as a new point is, and the marker, which opens them."""
        self._ledger.retention.extend([self._key(MARKER), *map(self._key_of, keys)])

    def kept(self, keys: Sequence[str]) -> Mapping[str, Kept]:
        """Those of some deltas that are locked, or under a legal hold."""
        found = {self._key_of(key): key for key in keys}
        kept = self._ledger.retention.kept([*found])
        return {key: kept[at] for at, key in found.items() if at in kept}

    def hold(self, keys: Sequence[str], *, on: bool) -> None:
        """Put deltas under legal holds, or end these."""
        self._ledger.retention.hold([*map(self._key_of, keys)], on=on)

    def unaccounted(self) -> Sequence[StoreError]:
        """What the changes name and the bucket has not, or shows otherwise than it was made."""
        return unaccounted(self._ledger)

    def create(self, marker: bytes, site: Site | None = None) -> None:
        """Put the marker where nothing is."""
        site = site or Site()
        if self._mode != PRIVATE_FILE:
            raise UsageError(
                "objects have no mode",
                where=self.where,
                hint="the bucket's policy says who may read them",
            )
        if site.make_bucket:
            self._bucket.create(locked=site.lock_days is not None)
        retention = self._ledger.retention
        if site.lock_days is not None:
            retention.need()
            retention.days = site.lock_days
        for found in self._bucket.list(self._key("")):
            if found.key == self._key(MARKER):
                raise self._taken()
            raise StoreError(
                f"something is there already ({found.key})",
                where=self.where,
                hint="choose a prefix under which nothing is",
            )
        try:
            self._bucket.put(self._key(MARKER), marker, new=True)
        except Taken:
            if self._bucket.get(self._key(MARKER)).data != marker:
                raise self._taken() from None
        if site.single_writer:
            self._bucket.put(self._key(ALONE), b"{}\n")
        try:
            self._probe()
            retention.begin([self._key(MARKER)])
        except StoreError:
            self._ledger.remove([MARKER])
            raise

    def _taken(self) -> StoreError:
        return StoreError(
            "is a store already", where=self.where, hint="use it as it is; nothing was changed"
        )

    def check(self) -> None:
        """Raise `StoreError` if the marker is not there."""
        try:
            self._marker = self._read(self._key(MARKER), _LONGEST_MARKER)
        except Gone:
            if (mark := hidden_by(self._ledger, MARKER)) is not None:
                raise mark from None
            raise StoreError("there is no store here", where=self.where, hint=_HINT) from None

    def _probe(self) -> None:
        """See once that what must be new is refused if it is not, by making the marker again."""
        if self._honest:
            return
        marker = self._marker or self._read(self._key(MARKER), _LONGEST_MARKER)
        try:
            self._bucket.put(self._key(MARKER), marker, new=True)
        except Taken:
            self._honest = True
            return
        if not self._exists(self._key(ALONE)):
            raise StoreError(
                "its server ignores If-None-Match: two engines could undo each other's points",
                where=self.where,
                hint="if there is never more than one writer: 'fleece init --single-writer'",
            )
        self._honest = True

    def writable(self, key: str = "") -> bool:
        """Nobody can tell but by trying."""
        return True

    def room(self) -> None:
        """Nobody can tell."""

    def name(self, key: str) -> str:
        """The object that a key means, or that it would have."""
        return self._ledger.name(self._known(key) or key)

    def listing(self, guest: str | None = None) -> Listing:
        """All deltas, and what is not fleece's; of a guest, only what it has."""
        foreign: list[str] = []
        if guest is None:
            foreign = self._ledger.all()
            views = [view for _, view in sorted(self._ledger.views.items())]
        else:
            views = [self._ledger.alone(guest)]
        deltas = [
            f"{view.guest}/{point}/{name}"
            for view in views
            for point, objects in sorted(view.points.items())
            for name in sorted(objects)
            if name.endswith(SUFFIX)
        ]
        self._reading.expect(map(self._object, deltas))
        marks = [key for view in views for key in view.notes if is_mark(key)]
        return Listing(deltas, [self._ledger.name(key) for key in foreign], marks)

    def open(self, key: str) -> Blob:
        """The object that a change names so."""
        try:
            return self._reading.open(self._object(key))
        except Gone as error:
            raise DeltaError(error.what, where=error.where or self.name(key)) from error

    def forget(self, key: str) -> bool:
        """Forget what this host remembers of a delta."""
        with contextlib.suppress(Gone):
            return self._reading.forget(self._object(key))
        return False

    def has(self, key: str) -> bool:
        """Whether anything has a key: of what lies beside a point's deltas, when it was listed."""
        if (noted := self._noted(key)) is not None:
            return noted
        try:
            return self._exists(self._key(self._object(key)))
        except Gone:
            return False

    def stamp(self, key: str) -> str:
        """The object's key, which no other object ever has, with its length and ETag."""
        found = self._object(key)
        known = self._ledger.items.get(found) or self._bucket.head(self._key(found))
        return f"{found.rpartition('/')[0]} {known.length} {known.etag}"

    def get(self, key: str, most: int) -> bytes:
        """A small object's content."""
        if key == MARKER and self._marker is not None:
            return self._marker
        if self._noted(key) is False:
            raise Gone("is not there", where=self._ledger.name(key))
        return self._read(self._key(self._object(key)), most)

    def _noted(self, key: str) -> bool | None:
        """Whether what lies beside a point's deltas was listed; None: it is none of such.

        A pin that came since is followed by a change, by which whoever drops the point notices.
        """
        if key.count("/") != 2 or key.endswith(SUFFIX):
            return None
        return key in self._ledger.view(key.partition("/")[0]).notes

    def put(self, key: str, data: bytes) -> None:
        """Put a small object over what has its key.

        After a pin, or tags, a change is made that only takes its number: so a prune elsewhere that
        has not seen them gives up.
        """
        found = self._object(key)
        etag = self._bucket.put(self._key(found), data)
        if self._noted(key) is not None:
            item = Listed(found, len(data), etag, datetime.now(UTC))
            self._ledger.view(key.partition("/")[0]).notes[key] = item
        if is_mark(key):
            self._ledger.append(key.partition("/")[0], Change())

    def delete(self, key: str) -> None:
        """Delete a small object, if there is one: who may not delete is not refused for nothing."""
        with contextlib.suppress(Gone):
            if not self.has(key):
                return
            self._ledger.remove_or_hide(self._object(key))
            if self._noted(key):
                del self._ledger.view(key.partition("/")[0]).notes[key]

    def sweep(self, key: str) -> None:
        """Nothing: what is put is there or not."""

    @contextlib.contextmanager
    def lock(self, guest: str, name: str, patience: Patience | None = None) -> Iterator[None]:
        """Hold the lock of this host; other hosts' engines are found out by the next change."""
        with lock.locked(self.where, guest, name, patience or Patience()):
            self._probe()
            self._ledger.forget(guest)
            yield

    def batch(self, guest: str, name: str) -> Batch:
        """Objects under keys of their own."""
        return ObjectBatch(self._ledger, guest, name, self.writer)

    def left(self, guest: str) -> list[Batch]:
        """What writers left of whom it is known that they are dead, or too late."""
        return [LeftBatch(self._ledger, guest, folder) for folder in self._left(guest)]

    def _left(self, guest: str) -> list[DataFolder]:
        self._ledger.base(guest)
        view = self._ledger.view(guest)
        left = dict(view.left(self.writer))
        free = self._ledger.free([key for keys in left.values() for key in keys])
        found = {folder for folder, keys in left.items() if free & {*keys}}
        begun = {folder for folder, _ in self._ledger.uploads(guest)}
        return sorted(
            found | {folder for folder in begun if view.is_left(folder, self.writer)},
            key=lambda folder: folder.name,
        )

    def replace(self, key: str) -> Draft:
        """An object under a key of its own."""
        self._object(key)
        return Replacement(self._ledger, key, self.writer)

    def spool(self) -> contextlib.AbstractContextManager[Draft]:
        """An object that belongs to no guest."""
        return spooled(self._ledger, self.writer)

    def drop(self, point: str) -> Sequence[str]:
        """Make the change that drops a point, then remove what it had."""
        guest, name = point.split("/")
        view = self._ledger.view(guest)
        objects = [*view.points.get(name, {}).values()]
        if not objects:
            raise Gone("is not there", where=self.name(point))
        notes = [note.key for key, note in view.notes.items() if key.startswith(f"{point}/")]
        self._ledger.append(guest, Change(name))
        self._ledger.remove([*objects, *notes])
        return []

    def tidy(self, points: Sequence[str]) -> Sequence[str]:
        """Remove what is not seen of some points' guests."""
        removed: list[str] = []
        for guest in sorted({point.partition("/")[0] for point in points}):
            removed += remove_left(self._ledger, guest, self._left(guest))
            self._ledger.sweep(guest)
        return removed

    def _key(self, key: str) -> str:
        return self._ledger.key(key)

    def _key_of(self, key: str) -> str:
        """In the bucket, of the object that a key of the store means."""
        return self._key(self._object(key))

    def _known(self, key: str) -> str | None:
        """The key of a delta's object, if it is known without a request."""
        names = key.split("/")
        if len(names) == 3 and (view := self._ledger.views.get(names[0])) is not None:
            return view.points.get(names[1], {}).get(names[2])
        return None

    def _object(self, key: str) -> str:
        """The key, below the prefix, of the object that a key of the store means.

        Raises:
            Gone: its point is not there, or it is a delta and not in it.
        """
        names = key.split("/")
        if len(names) != 3:
            return key
        guest, point, name = names
        objects = self._ledger.view(guest).points.get(point)
        if objects is None:
            raise Gone("its point is not there", where=self._ledger.name(key))
        if not name.endswith(SUFFIX):
            return f"{guest}/{NOTES}/{point}/{name}"
        if name not in objects:
            raise Gone("is not there", where=self._ledger.name(key))
        return objects[name]

    def _exists(self, key: str) -> bool:
        try:
            self._bucket.head(key)
        except Gone:
            return False
        return True

    def _read(self, key: str, most: int) -> bytes:
        found = self._bucket.get(key, 0, most + 1)
        if found.total > most:
            raise StoreError(f"is longer than {most} bytes", where=self._bucket.address.named(key))
        return found.data
