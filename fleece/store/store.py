"""A store in a plain folder: `STORE/guest/point/disk.fleece`.

A point is written into a folder whose name begins with `.partial-`, made durable, and renamed.
Names are for people; what counts is in the headers (`fleece.store.catalogue`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import DeltaError, StoreError
from fleece.folder import Folder
from fleece.keys import Secret
from fleece.store import notes, spool
from fleece.store.catalogue import Access, Catalogue, Damaged, Entry
from fleece.store.errors import store_errors
from fleece.store.listing import look
from fleece.store.lock import Patience, held
from fleece.store.marker import Marker
from fleece.store.names import MARKER, PARTIAL, final_name
from fleece.store.partial_point import PartialPoint, UnfinishedPoint, partials, unfinished
from fleece.store.removal import remove_folder
from fleece.store.root import Root
from fleece.store.sink import DeltaFile

_LONGEST_MARKER = 4096
_HINT = "is its file system mounted? 'fleece init' makes a new store"


class Store:
    """An existing store.

    Args:
        path: the folder.
        secret: the store's key file or passphrase; None: it has no key.

    Attributes:
        id: the store's own.
        protection: what its deltas are protected by; None: nothing.
        algorithm: the hash of its deltas.

    Raises:
        StoreError: it is not there, or it is no store.
        UsageError: the secret is not the store's.
    """

    def __init__(self, path: str | os.PathLike[str], secret: Secret | None = None) -> None:
        self.path = Path(path)
        self.where = str(path)
        self.marker = read_marker(self.path)
        self.id = self.marker.id
        self.protection = self.marker.protection(secret, self.where)
        self.algorithm = self.marker.algorithm(self.protection)
        self._root = Root(self.path, self.marker.mode)
        self.access = Access(self._root, secret, self.protection, self.algorithm.name)

    def catalogue(self) -> Catalogue:
        """Read every delta's own words.

        Raises:
            StoreError: the folder cannot be listed. A listing that fails is never an empty one.
        """
        entries: list[Entry] = []
        damaged: list[Damaged] = []
        with store_errors(self.path):
            found = look(self._root)
            for path in found.deltas:
                try:
                    entries.append(self.access.read_entry(path))
                except DeltaError as error:
                    if self._root.has(path):  # else somebody removed it meanwhile
                        damaged.append(Damaged(path, error))
        return Catalogue(entries, damaged, self.where, self.access, found.foreign)

    def chain_id(self, guest: str) -> str:
        """The id of the chain that a guest's first backup into this store begins.

        It follows from the store's own id, so that what a killed first run left in QEMU is known.
        """
        return hashlib.sha256(f"{self.id}\0{guest}".encode()).hexdigest()[:8]

    def chain_of(self, guest: str, catalogue: Catalogue) -> str:
        """The chain that a guest's next backup into this store goes on with.

        The store's own, or, if it has only points of others, which were imported, the newest one's.
        """
        known = [point.chain for point in catalogue.of_guest(guest)]
        own = self.chain_id(guest)
        return own if own in known else [own, *known][-1]

    @contextlib.contextmanager
    def locked(self, guest: str, patience: Patience | None = None) -> Iterator[None]:
        """Be the only one that writes this guest's points. The lock dies with its holder.

        Args:
            guest: whose points.
            patience: how long to wait for another holder; None: not at all.

        Raises:
            Interrupted: the waiting was cancelled.
            StoreError: another process holds it, or it cannot be relied on (`fleece.store.lock`).
        """
        with contextlib.ExitStack() as stack:
            with store_errors(self.path):
                folder = stack.enter_context(self._root.made_folder(self.file_name(guest)))
            stack.enter_context(held(folder, self._root.mode, guest, patience or Patience()))
            yield

    def unfinished(self, guest: str) -> list[UnfinishedPoint]:
        """What dead runs left of points, as far as a header of each disk is there, newest first.

        The lock must be held.
        """
        with store_errors(self.path), self._guest(guest) as folder:
            found = [unfinished(self.access, folder, name) for name in partials(folder)]
        points = [point for point in found if point is not None and point.guest == guest]
        return sorted(points, key=lambda point: -point.ref.sequence)

    def resume(self, left: UnfinishedPoint) -> PartialPoint:
        """Go on with a point that a dead run left; the lock must be held."""
        return PartialPoint.resumed(left, self.access)

    def remove_partial(self, guest: str, keep: UnfinishedPoint | None = None) -> list[str]:
        """Remove what dead runs left of points, but one; the lock must be held. Gives the paths."""
        removed = []
        with store_errors(self.path), self._guest(guest) as folder:
            for name in partials(folder):
                if keep is None or name != keep.folder.name:
                    remove_folder(folder, name)
                    removed.append(str(folder.path / name))
        return removed

    def begin(self, guest: str, point: str, sequence: int) -> PartialPoint:
        """Start to write a point; the lock must be held."""
        with store_errors(self.path), self._guest(guest) as parent:
            name = self.access.point_name(point)
            partial = f"{PARTIAL}{name}"
            parent.make_folder(partial, self._root.folder_mode).close()
            final = parent.path / final_name(name, sequence)
        return PartialPoint(parent.path / partial, final, self.access)

    def take_in(self, file: DeltaFile, entry: Entry, beside: Entry | None) -> Path:
        """Give a spooled delta, checked and durable, its place; the guest's lock must be held.

        Args:
            file: the spooled file.
            entry: what it is.
            beside: another disk's delta of the same point; None: it is the first.

        Raises:
            StoreError: something else has its name, or the store cannot be written.
        """
        with store_errors(self.path):
            return spool.take_in(self.access, file, entry, beside)

    def distrust(self, chain: str, disk: str, reason: str) -> None:
        """Note durably that the bitmaps of a chain's disk missed a write; a guest's lock is held.

        The note lies beside the store's marker, under the chain's own id: it is about the chain, so
        it goes where the chain goes, and nothing that happens to QEMU can lose it.
        """
        notes.distrust(self.access, chain, disk, reason)

    def distrusted(self, chain: str, disk: str) -> str | None:
        """Why the bitmaps of a chain's disk must not be believed; None: they may.

        Raises:
            StoreError: that cannot be read. A note that cannot be read is not none.
        """
        return notes.distrusted(self.access, chain, disk)

    def trust(self, chain: str, disk: str) -> None:
        """All of the disk was read: what an audit found is mended."""
        notes.trust(self.access, chain, disk)

    def file_name(self, name: str) -> str:
        """What the folder of a guest, or the file of a disk, is called; hidden by encryption."""
        return self.access.file_name(name)

    def _guest(self, guest: str) -> contextlib.AbstractContextManager[Folder]:
        return self._root.made_folder(self.file_name(guest))


def read_marker(path: Path) -> Marker:
    """What a store's marker says, which is not proven yet.

    Raises:
        StoreError: there is no store, or the marker cannot be read.
    """
    with store_errors(path):
        try:
            folder = Folder.open(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError("there is no store here", where=path, hint=_HINT) from None
    with folder:
        try:
            return Marker.of_text(folder.read(MARKER, _LONGEST_MARKER).decode())
        except FileNotFoundError:
            raise StoreError(
                f"this folder is no fleece store (it has no {MARKER})",
                where=path,
                hint=_HINT,
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"the store's marker cannot be read ({text})", where=path / MARKER
            ) from error
