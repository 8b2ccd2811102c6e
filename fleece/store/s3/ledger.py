"""The changes and the objects of a store's guests: read by listing, changed by the next number."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fleece.cancel import CancelToken
from fleece.errors import Interrupted, StoreError
from fleece.store.errors import Gone
from fleece.store.names import DISTRUST, DRILLS, MARKER
from fleece.store.s3 import names
from fleece.store.s3.cache import Cache, Identity
from fleece.store.s3.change import LONGEST, Change
from fleece.store.s3.client.answers import Listed, Upload
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.problems import Denied, Taken
from fleece.store.s3.names import DataFolder
from fleece.store.s3.retention import Retention
from fleece.store.s3.versions import Versions
from fleece.store.s3.view import View

_CLEANING = 10.0
"""Seconds that a run which failed tries to remove what it began."""
AT_ONCE = 32
"""Small objects that are read at once."""


class Overtaken(StoreError):
    """Another engine made a change first."""


class Ledger:
    """A store in a bucket, below the prefix of its address.

    Args:
        bucket: where.

    Attributes:
        bucket: the same.
        where: the store's address.
        views: what is known of each guest.
        items: the objects that were listed, by their keys below the prefix.
        cache: what this host remembers of objects.
        versions: of the objects, where the bucket keeps them.
        retention: of the objects, where the bucket has object lock.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.where = str(bucket.address)
        self.views: dict[str, View] = {}
        self.items: dict[str, Listed] = {}
        self.cache = Cache(self.where)
        self.versions = Versions(bucket)
        self.retention = Retention(bucket, self.cache)
        self._bases: dict[str, int] = {}
        self._begun: dict[str, list[tuple[DataFolder, Upload]]] = {}
        self._listed_whole = False
        self._stale: set[str] = set()
        prefix = bucket.address.prefix
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def listed(self) -> bool:
        """Whether the whole store was listed."""
        return self._listed_whole

    def key(self, name: str) -> str:
        """In the bucket, of what has a key below the prefix."""
        return self._prefix + name

    def name(self, key: str) -> str:
        """For messages, of what has a key below the prefix."""
        return f"{self.where.rstrip('/')}/{key}"

    def all(self) -> list[str]:
        """List the whole store anew; gives the keys that are none of fleece's."""
        found: dict[str, View] = {}
        listed: dict[str, dict[int, Listed]] = {}
        foreign = []
        self.items = {}
        for item in self._listed(""):
            if not _of_store(item.key) and not self._sort(item, found, listed):
                foreign.append(item.key)
        for guest, view in found.items():
            self._settle(view, listed.get(guest, {}))
        for guest in [guest for guest, view in found.items() if view.lacks_head]:
            found[guest] = self._look(guest)
        there = {identity(item) for item in self.items.values()}
        self.cache.keep(there)
        self.views = found
        self._bases = {guest: view.head for guest, view in found.items()}
        self._listed_whole = True
        self._stale.clear()
        return foreign

    def alone(self, guest: str) -> View:
        """List a guest's part anew, for decisions that rest on it."""
        view = self.look(guest)
        self._bases[guest] = view.head
        return view

    def forget(self, guest: str) -> None:
        """Believe nothing of a guest that was read before: its lock was taken since."""
        self.views.pop(guest, None)
        self._bases.pop(guest, None)
        self._begun.pop(guest, None)
        self._stale.add(guest)

    def base(self, guest: str) -> int:
        """Number of the last change of a guest that the caller's decisions know of.

        It is that of the last listing, or of the first look since the guest's lock was taken;
        the changes that were made here since count.
        """
        if guest not in self._bases:
            whole = self._listed_whole and guest not in self._stale
            self._bases[guest] = 0 if whole else self.look(guest).head
        return self._bases[guest]

    def view(self, guest: str) -> View:
        """What is known of a guest, or is listed now."""
        known = self.views.get(guest)
        return self.look(guest) if known is None else known

    def look(self, guest: str) -> View:
        """List a guest's part anew."""
        view = self._look(guest)
        if view.lacks_head:
            view = self._look(guest)
        self.views[guest] = view
        return view

    def _look(self, guest: str) -> View:
        found: dict[str, View] = {guest: View(guest)}
        listed: dict[str, dict[int, Listed]] = {}
        for item in self._listed(f"{guest}/"):
            self._sort(item, found, listed)
        self._settle(found[guest], listed.get(guest, {}))
        return found[guest]

    def _listed(self, under: str) -> Iterable[Listed]:
        start = len(self._prefix)
        for item in self.bucket.list(self.key(under)):
            found = Listed(item.key[start:], item.length, item.etag, item.modified)
            self.items[found.key] = found
            yield found

    def _sort(
        self, item: Listed, found: dict[str, View], listed: dict[str, dict[int, Listed]]
    ) -> bool:
        """Put an object where it belongs; gives whether it is one of fleece's."""
        guest, *rest = item.key.split("/")
        number = names.change_number(rest[1]) if len(rest) == 2 else None
        if number is not None and rest[0] == names.COMMITS:
            _view(found, guest)
            listed.setdefault(guest, {})[number] = item
            return True
        if len(rest) != 3 or rest[0] not in (names.DATA, names.NOTES):
            return False
        if rest[0] == names.NOTES:
            key = f"{guest}/{rest[1]}/{rest[2]}"
            _view(found, guest).notes[key] = item
            return True
        folder = DataFolder.parse(rest[1])
        if folder is None:
            return False
        _view(found, guest).folders.setdefault(folder, {})[item.key] = item
        return True

    def _settle(self, view: View, listed: dict[int, Listed]) -> None:
        """Read the changes that nobody has read yet, and make the view out of all."""
        view.changes = {number: self._remembered(item) for number, item in listed.items()}
        unread = [number for number, change in view.changes.items() if change is None]
        if unread:
            with ThreadPoolExecutor(min(AT_ONCE, len(unread))) as pool:
                texts = [*pool.map(self._text, [listed[number] for number in unread])]
            for number, text in zip(unread, texts, strict=True):
                view.changes[number] = change = _parsed(text)
                if change is not None and text is not None:
                    self.cache.put(identity(listed[number]), ((0, text),))
        view.settle()

    def _remembered(self, item: Listed) -> Change | None:
        """A change that this host knows."""
        known = self.cache.get(identity(item))
        return _parsed(known[0][1]) if known else None

    def _text(self, item: Listed) -> bytes | None:
        """A change's text; None: it is gone, or too long to be one."""
        with contextlib.suppress(Gone):
            if item.length <= LONGEST:
                return self.bucket.get(self.key(item.key)).data
        return None

    def append(self, guest: str, change: Change, base: int | None = None) -> None:
        """Make the next change after those that the caller's decisions know of.

        Args:
            guest: whose.
            change: what.
            base: number of the last change that is known of; None: that of `base`.

        Raises:
            Overtaken: there is a later one; nothing changed, nor ever will by this one.
            StoreError: nobody knows whether it was made.
        """
        base = self.base(guest) if base is None else base
        key = self.key(names.change_key(guest, base + 1))
        data = change.to_bytes()
        with contextlib.suppress(Taken):  # by us, perhaps: an answer can be lost
            self.bucket.put(key, data, new=True, lock=self.retention.lock())
        got = self.bucket.get(key)
        if got.data != data:
            raise self._overtaken(key, got.data)
        self.cache.put((names.change_key(guest, base + 1), got.etag, len(data)), ((0, data),))
        self.cache.keep()
        self.view(guest).add(base + 1, change)
        if self._bases.get(guest) == base:
            self._bases[guest] = base + 1

    def _overtaken(self, key: str, found: bytes) -> Overtaken:
        try:
            first = Change.parse(found)
            by, point = first.by, first.point
        except (ValueError, RecursionError):
            by, point = "something that is not fleece", ""
        what = f"point {point}" if point else "its points"
        return Overtaken(
            f"another engine changed {what} first ({by})",
            where=f"{self.where.rstrip('/')}/{key[len(self._prefix) :]}",
            hint="nothing of it is lost; run it again",
        )

    def fence(self, guest: str) -> None:
        """See that what was begun up to now is never seen, unless it is by now."""
        self.base(guest)
        self._begun.pop(guest, None)
        with contextlib.suppress(Overtaken):
            self.append(guest, Change(), self.look(guest).head)
        self.look(guest)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete objects, with all their versions."""
        self.versions.erase([self.key(key) for key in keys])
        for key in keys:
            self.items.pop(key, None)

    def remove_or_hide(self, key: str) -> None:
        """Delete a small object; one that the bucket has locked by itself is hidden."""
        try:
            self.remove([key])
        except StoreError:
            if not self.versions.are_kept:
                raise
            self.bucket.delete([self.key(key)])

    def free(self, keys: Sequence[str]) -> set[str]:
        """Those of some objects that no lock is known to keep from being deleted now."""
        with contextlib.suppress(Denied):
            kept = self.retention.kept([self.key(key) for key in keys])
            return {key for key in keys if self.key(key) not in kept}
        return {*keys}

    def sweep(self, guest: str) -> None:
        """Delete versions of a guest's objects that nothing needs, where any are kept."""
        if self.versions.are_kept:
            self.versions.sweep(self._prefix, self.look(guest))

    @contextlib.contextmanager
    def cleaning(self) -> Iterator[Bucket]:
        """The bucket for removing what was begun: also by a cancelled run, but not for long.

        What cannot be removed is left to the next run.
        """
        token = CancelToken()
        timer = threading.Timer(_CLEANING, token.cancel)
        timer.start()
        try:
            with contextlib.suppress(Interrupted, StoreError):
                yield self.bucket.under(token)
        finally:
            timer.cancel()
            timer.join()

    def spooled(self) -> list[str]:
        """Names of the deltas that came from outside, be they whole or not."""
        under = self.key(f"{names.SPOOL}/")
        whole = [item.key for item in self.bucket.list(under)]
        begun = [upload.key for upload in self.bucket.uploads(under)]
        return sorted({key[len(under) :] for key in (*whole, *begun)})

    def remove_spooled(self, keys: Sequence[str]) -> None:
        """Remove such, be they whole or not."""
        mine = {self.key(key) for key in keys}
        for upload in self.bucket.uploads(self.key(f"{names.SPOOL}/")):
            if upload.key in mine:
                with contextlib.suppress(Gone):
                    self.bucket.abort(upload)
        self.remove(keys)

    def abort(self, guest: str, upload: Upload) -> None:
        """Give up an object of a guest that was being written in parts."""
        self._begun.pop(guest, None)
        with contextlib.suppress(Gone):
            self.bucket.abort(upload)

    def uploads(self, guest: str) -> list[tuple[DataFolder, Upload]]:
        """Objects of a guest that are being written in parts, or that nobody writes any more.

        They are listed once after the guest's lock was taken, and after some were removed.
        """
        if guest in self._begun:
            return self._begun[guest]
        found = []
        start = len(self.key(f"{guest}/{names.DATA}/"))
        for upload in self.bucket.uploads(self.key(f"{guest}/{names.DATA}/")):
            folder = DataFolder.parse(upload.key[start:].partition("/")[0])
            if folder is not None:
                found.append((folder, upload))
        self._begun[guest] = found
        return found


def _view(found: dict[str, View], guest: str) -> View:
    """That of a guest, made if it is not there."""
    if guest not in found:
        found[guest] = View(guest)
    return found[guest]


def identity(item: Listed) -> Identity:
    """What tells an object from any that has its key before or after it."""
    return item.key, item.etag, item.length


def _parsed(text: bytes | None) -> Change | None:
    """A change; None: it cannot be understood."""
    with contextlib.suppress(ValueError, RecursionError):
        return None if text is None else Change.parse(text)
    return None


def _of_store(key: str) -> bool:
    """Whether it is one of those that belong to no guest."""
    head, _, rest = key.partition("/")
    if head == names.SPOOL:
        return names.spool_writer(rest) is not None
    return not rest and (key in (MARKER, names.ALONE) or key.startswith((DISTRUST, DRILLS)))
