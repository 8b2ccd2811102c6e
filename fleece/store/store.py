"""A store: points of guests, as deltas that describe themselves, wherever they are kept.

A point is written where nobody sees it, made durable, and then seen at once. What a storage must
give for that is told by `fleece.store.backend`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping

from fleece.delta.reader import DeltaReader
from fleece.errors import DeltaError, StoreError
from fleece.keys import Secret
from fleece.store import notes
from fleece.store.backend import Backend, Draft, Listing, Metered, Patience, Retains, Usage
from fleece.store.catalogue import Access, Catalogue, Damaged, Entry, point_key
from fleece.store.errors import Gone
from fleece.store.keeping import outlast
from fleece.store.marker import Marker
from fleece.store.names import COPIED, MARKER, final_name
from fleece.store.partial_point import PartialPoint, UnfinishedPoint, unfinished

_LONGEST_MARKER = 4096
_HINT = "is its file system mounted? 'fleece init' makes a new store"


class Store:
    """An existing store; `fleece.open_store` opens one.

    Args:
        backend: where it is.
        secret: the store's key file or passphrase; None: it has no key.

    Attributes:
        where: it is, for messages.
        id: the store's own.
        protection: what its deltas are protected by; None: nothing.
        algorithm: the hash of its deltas.
        backend: where it is.
        access: how its deltas are opened.
        described: what was read of deltas, by their keys, with the stamps that they had. Objects of
            one store may share it.

    Raises:
        StoreError: it is not there, or it is not a store.
        UsageError: the secret is not the store's.
    """

    def __init__(self, backend: Backend, secret: Secret | None = None) -> None:
        self.where = backend.where
        self.marker = read_marker(backend)
        self.id = self.marker.id
        self.protection = self.marker.protection(secret, self.where)
        self.algorithm = self.marker.algorithm(self.protection)
        self.backend = _opened(backend, self.marker)
        self.access = Access(self.backend, secret, self.protection, self.algorithm.name)
        self.described: dict[str, tuple[str, Entry]] = {}

    def usage(self) -> Mapping[str, Usage]:
        """What was asked of its storage so far, by kind; empty: nobody counts."""
        return self.backend.usage() if isinstance(self.backend, Metered) else {}

    def catalogue(self, guest: str | None = None) -> Catalogue:
        """Read every delta's own words.

        Args:
            guest: only those in this guest's place, at the cost of that; if none of the guest is
                there, or not all that they build on (somebody has moved folders), all. None: all.

        Raises:
            StoreError: it cannot be listed. A listing that fails is never an empty one.
        """
        if guest is not None:
            found = self._catalogue(self.backend.listing(self.access.file_name(guest)))
            if found.of_guest(guest) and found.closed:
                return found
        return self._catalogue(self.backend.listing())

    def _catalogue(self, found: Listing) -> Catalogue:
        entries: list[Entry] = []
        damaged: list[Damaged] = []
        for key in found.deltas:
            try:
                entries.append(self._described(key, found.stamps.get(key)))
            except DeltaError as error:
                if self.backend.has(key):  # else somebody removed it meanwhile
                    damaged.append(Damaged(key, error))
        return Catalogue(entries, damaged, self.where, self.access, found.foreign, found.marks)

    def _described(self, key: str, stamp: str | None) -> Entry:
        """Describe a delta that has a stamp, once for as long as it has that."""
        known = self.described.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        entry = self._read_entry(key)
        if stamp is not None:
            self.described[key] = stamp, entry
        return entry

    def _read_entry(self, key: str) -> Entry:
        """Describe a delta; if what is remembered of it is wrong, by itself."""
        try:
            return self.access.read_entry(key)
        except DeltaError:
            if not self.backend.forget(key):
                raise
            return self.access.read_entry(key)

    def chain_id(self, guest: str) -> str:
        """The id of the chain that a guest's first backup into this store begins.

        It follows from the store's own id, so that what a killed first run left in the source is
        known.
        """
        return hashlib.sha256(f"{self.id}\0{guest}".encode()).hexdigest()[:8]

    def chain_of(self, guest: str, catalogue: Catalogue) -> str:
        """The chain that a guest's next backup into this store continues.

        The store's own, or, if it has only points of others, which were imported, the newest one's.
        """
        known = [point.chain for point in catalogue.of_guest(guest)]
        own = self.chain_id(guest)
        return own if own in known else [own, *known][-1]

    def locked(
        self, guest: str, patience: Patience | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Be the only one that writes this guest's points. The lock dies with its holder.

        Args:
            guest: whose points.
            patience: how long to wait for another holder; None: not at all.

        Raises:
            Interrupted: the waiting was cancelled.
            StoreError: another process holds it, or it cannot be relied on.
        """
        return self.backend.lock(self.access.file_name(guest), guest, patience)

    def unfinished(self, guest: str) -> list[UnfinishedPoint]:
        """The points of interrupted backups of which each disk has a header, newest first.

        The lock must be held.
        """
        left = self.backend.left(self.access.file_name(guest))
        found = [unfinished(self.access, batch) for batch in left]
        points = [point for point in found if point is not None and point.guest == guest]
        return sorted(points, key=lambda point: -point.ref.sequence)

    def part_of(self, left: UnfinishedPoint, part: str) -> DeltaReader:
        """The delta of a part of an interrupted backup's point.

        Raises:
            DeltaError: it is not finished, or damaged.
        """
        return self.access.read(left.batch.open(self.access.delta_name(part)))

    def resume(self, left: UnfinishedPoint) -> PartialPoint:
        """Resume a point that an interrupted backup left; the lock must be held."""
        return PartialPoint(left.batch, left.guest, left.ref.id, left.ref.sequence, self.access)

    def remove_partial(self, guest: str, keep: UnfinishedPoint | None = None) -> list[str]:
        """Remove interrupted backups' points, but one; the lock must be held. Gives the names."""
        removed = []
        for batch in self.backend.left(self.access.file_name(guest)):
            if keep is None or batch.name != keep.batch.name:
                batch.discard()
                removed.append(batch.where)
        return removed

    def begin(self, guest: str, point: str, sequence: int) -> PartialPoint:
        """Start to write a point; the lock must be held."""
        batch = self.backend.batch(self.access.file_name(guest), self.access.point_name(point))
        return PartialPoint(batch, guest, point, sequence, self.access)

    def begin_copy(self, guest: str, point: str, sequence: int) -> PartialPoint:
        """Start to write a point of another store; the lock must be held."""
        name = COPIED + self.access.point_name(point)
        batch = self.backend.batch(self.access.file_name(guest), name)
        return PartialPoint(batch, guest, point, sequence, self.access)

    def remove_copies(self, guest: str) -> list[str]:
        """Remove points that killed copies left half written; the lock must be held.

        Gives the names.
        """
        found = self.backend.left(self.access.file_name(guest))
        left = [batch for batch in found if batch.name.startswith(COPIED)]
        for batch in left:
            batch.discard()
        return [batch.where for batch in left]

    def spooled(self) -> contextlib.AbstractContextManager[Draft]:
        """Room for a delta that comes from outside, until it is known what it is.

        Afterwards it is gone, if `take_in` did not take it.
        """
        return self.backend.spool()

    def take_in(self, draft: Draft, entry: Entry, beside: Entry | None, known: Catalogue) -> str:
        """Give a spooled delta, checked and durable, its place; the guest's lock must be held.

        Args:
            draft: the spooled delta.
            entry: what it is.
            beside: another disk's delta of the same point; None: it is the first.
            known: the store's, with what it builds on.

        Returns:
            Where it is, for messages.

        Raises:
            StoreError: something else has its name, or the store cannot be written.
        """
        head, access = entry.header, self.access
        final = final_name(access.point_name(head.point.id), head.point.sequence)
        new = f"{access.file_name(head.guest)}/{final}"
        key = f"{new if beside is None else point_key(beside)}/{access.delta_name(head.disk)}"
        outlast(access, [entry], known)
        draft.place(key)
        return self.backend.name(key)

    def distrust(self, chain_id: str, disk: str, reason: str) -> None:
        """Note durably that the bitmaps of a chain's disk missed a write; a guest's lock is held.

        The note lies beside the store's marker, under the chain's own id: it is about the chain, so
        it goes where the chain goes, and nothing that happens to the source can lose it.
        """
        notes.distrust(self.access, chain_id, disk, reason)

    def distrusted(self, chain_id: str, disk: str) -> str | None:
        """Why the bitmaps of a chain's disk must not be believed; None: they may.

        Raises:
            StoreError: that cannot be read. A note that cannot be read is not none.
        """
        return notes.distrusted(self.access, chain_id, disk)

    def trust(self, chain_id: str, disk: str) -> None:
        """All of the disk was read: what an audit found is mended."""
        notes.trust(self.access, chain_id, disk)


def read_marker(backend: Backend) -> Marker:
    """What a store's marker says, which is not proven yet.

    Raises:
        StoreError: there is no store, or the marker cannot be read.
    """
    backend.check()
    try:
        raw = backend.get(MARKER, _LONGEST_MARKER)
    except Gone:
        raise StoreError(
            f"this folder is not a fleece store (it has no {MARKER})",
            where=backend.where,
            hint=_HINT,
        ) from None
    except StoreError as error:
        raise _unreadable(backend, error.what) from error
    try:
        return Marker.of_text(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _unreadable(backend, str(error)) from error


def _opened(backend: Backend, marker: Marker) -> Backend:
    """Where a store is, as its marker says that it is used.

    Raises:
        StoreError: its points are to be locked, and the place can lock nothing.
    """
    backend = backend.sharing(marker.mode)
    if marker.lock_days is None:
        return backend
    if isinstance(backend, Retains):
        return backend.retaining(marker.lock_days)
    raise StoreError(
        f"its marker says that points are locked for {marker.lock_days} days, and here they cannot",
        where=backend.where,
        hint="a store that locks its points is in a bucket with object lock",
    )


def _unreadable(backend: Backend, text: str) -> StoreError:
    return StoreError(f"the store's marker cannot be read ({text})", where=backend.name(MARKER))
