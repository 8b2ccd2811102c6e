"""Change what a store already holds: replace a delta, drop a point, pin one. Each step is atomic.

A killed step leaves either the old state or the new one, and at most hidden objects, which `tidy`
removes. The guest's lock must be held for all but reading pins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from fleece.errors import DeltaError, StoreError
from fleece.store import keeping
from fleece.store.backend import Backend
from fleece.store.catalogue import Access, Catalogue, Entry, StoredPoint, point_key
from fleece.store.envelope import wrap
from fleece.store.marks import note_keys
from fleece.store.names import PIN


class Replacement:
    """A new file for a delta that the store holds. Either `commit` or `discard` ends it.

    It must state the same disk: the same point and root. Those that build on it need no change.

    Args:
        entry: what it replaces.
        access: how deltas of the store are opened.
    """

    def __init__(self, entry: Entry, access: Access) -> None:
        self._access = access
        self._old = entry
        self._draft = access.backend.replace(entry.key)
        self.sink = self._draft.sink

    def commit(self) -> None:
        """Take the old file's place; when this returns, it has, durably.

        Raises:
            DeltaError: the new file does not state the same disk; the old one stays.
            StoreError: the old one stays.
        """
        self._draft.seal()
        with self._access.read(self._draft.open()) as delta:
            new = Entry.of(delta, self._draft.key)
        if (new.root, new.header.point, new.header.disk) != (
            self._old.root,
            self._old.header.point,
            self._old.header.disk,
        ):
            raise DeltaError("a merged delta has another root", where=self._old.where)
        self._draft.place(self._old.key)

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        self._draft.discard()


def places_of(catalogue: Catalogue, point: StoredPoint) -> list[str]:
    """The keys that a point's deltas are dropped by, copies too.

    Raises:
        StoreError: one cannot be dropped at once, because a delta of another point is with it, or
            because not all of the point's are.
    """
    mine = {copy.key for copy in _copies(catalogue, point)}
    found = {point_key(copy): copy for copy in _copies(catalogue, point)}
    for place, copy in sorted(found.items()):
        held = catalogue.beside(copy)
        here = {entry.header.disk for entry in held}
        if any(entry.key not in mine for entry in held) or here != point.deltas.keys():
            raise StoreError(
                f"point {point.id} does not have a folder of its own",
                where=catalogue.access.backend.name(place),
                hint="put each point's deltas into one folder STORE/GUEST/NAME",
            )
    return sorted(found)


def _copies(catalogue: Catalogue, point: StoredPoint) -> list[Entry]:
    return [copy for entry in point.deltas.values() for copy in catalogue.copies(entry)]


def drop(backend: Backend, places: Iterable[str]) -> list[str]:
    """Take one point out of the store.

    Args:
        backend: of the store.
        places: of the point (`places_of`); all of one goes at once.

    Returns:
        Names of what stays, because it is not fleece's.
    """
    return [kept for place in places for kept in backend.drop(place)]


def tidy(catalogue: Catalogue, guest: str) -> Sequence[str]:
    """Remove what killed steps left of a guest's points. Gives the names."""
    mine = {point_key(entry) for entry in catalogue.entries if entry.header.guest == guest}
    return catalogue.access.backend.tidy(sorted(mine))


def pin(catalogue: Catalogue, point: StoredPoint) -> None:
    """Protect a point, durably. Pinning twice is once."""
    said = json.dumps({"format": "fleece pin", "version": 1, "point": point.id})
    access, marker = catalogue.access, note_keys(catalogue, point, PIN)[0]
    keeping.hold(catalogue, point)
    access.backend.put(marker, wrap(access.protection, "pin", said))


def unpin(catalogue: Catalogue, point: StoredPoint) -> bool:
    """End the protection; gives whether there was any."""
    backend = catalogue.access.backend
    found = [marker for marker in note_keys(catalogue, point, PIN) if backend.has(marker)]
    for marker in found:
        backend.delete(marker)
    same = catalogue.of_guest(point.guest)
    others = [one for one in same if one.id != point.id and is_pinned(catalogue, one)]
    keeping.release(catalogue, point, others)
    return bool(found)


def is_pinned(catalogue: Catalogue, point: StoredPoint) -> bool:
    """Whether a point is protected. That a marker is beside any copy counts, not what is in it.

    Raises:
        StoreError: that cannot be told.
    """
    return any(map(catalogue.access.backend.has, note_keys(catalogue, point, PIN)))
