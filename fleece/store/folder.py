"""A store in a plain folder: `STORE/guest/point/disk.fleece`.

A point is written into a folder whose name begins with `.partial-`, made durable, and renamed.
Names are for people; what counts is in the headers (`fleece.store.catalogue`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import DeltaError, StoreError
from fleece.folder import PRIVATE_FILE, PRIVATE_FOLDER, Folder, Kind
from fleece.keys import Secret
from fleece.naming import name_new
from fleece.store import notes, spool
from fleece.store.catalogue import Access, Catalogue, Damaged, Entry
from fleece.store.errors import store_errors
from fleece.store.listing import look
from fleece.store.lock import Patience, held
from fleece.store.marker import Marker, StoreWishes
from fleece.store.names import MARKER, NEW_MARKER, PARTIAL, SPOOL, final_name, is_furniture
from fleece.store.partial_point import PartialPoint, UnfinishedPoint, partials, unfinished
from fleece.store.removal import remove_folder
from fleece.store.root import Root
from fleece.store.sink import DeltaFile

_LONGEST_MARKER = 4096


class FolderStore:
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
        self.marker = _read_marker(self.path)
        self.id = self.marker.id
        self.protection = self.marker.protection(secret, self.where)
        self.algorithm = self.marker.algorithm(self.protection)
        self._root = Root(self.path)
        self.access = Access(self._root, secret, self.protection, self.algorithm.name)

    @staticmethod
    def open_or_create(
        path: str | os.PathLike[str],
        secret: Secret | None = None,
        wishes: StoreWishes | None = None,
    ) -> FolderStore:
        """Open a store; make one where nothing or an empty folder is.

        Args:
            path: the folder.
            secret: the key file or passphrase of a store with a key.
            wishes: how a new store shall be; an existing one must be so.

        Raises:
            StoreError: something else is there.
            UsageError: the wishes contradict the secret, or the store that is there.
        """
        wishes = wishes or StoreWishes()
        store = (
            FolderStore.create(path, Marker.new(wishes, secret), secret)
            if is_free(path)
            else FolderStore(path, secret)
        )
        store.marker.check(wishes, store.where)
        return store

    @staticmethod
    def create(path: str | os.PathLike[str], marker: Marker, secret: Secret | None) -> FolderStore:
        """Make a store where nothing is (`is_free`); if others do so too, the first one's holds."""
        folder = Path(path)
        with store_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with Folder.open(folder.parent) as parent, contextlib.suppress(FileExistsError):
                parent.make_folder(folder.name).close()
                parent.sync()
            with Folder.open(folder) as made:
                _place_marker(made, marker.to_text(), PRIVATE_FILE)
        return FolderStore(folder, secret)

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
            partial = f"{PARTIAL}{point}"
            parent.make_folder(partial, self._root.folder_mode).close()
            final = parent.path / final_name(point, sequence)
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
        notes.distrust(self._root, self._subject(chain, disk), reason)

    def distrusted(self, chain: str, disk: str) -> str | None:
        """Why the bitmaps of a chain's disk must not be believed; None: they may.

        Raises:
            StoreError: that cannot be read. A note that cannot be read is not none.
        """
        return notes.distrusted(self._root, self._subject(chain, disk))

    def trust(self, chain: str, disk: str) -> None:
        """All of the disk was read: what an audit found is mended."""
        notes.trust(self._root, self._subject(chain, disk))

    def _subject(self, chain: str, disk: str) -> str:
        return f"{chain}-{self.file_name(disk)}"

    def file_name(self, name: str) -> str:
        """What the folder of a guest, or the file of a disk, is called; hidden by encryption."""
        return self.access.file_name(name)

    def _guest(self, guest: str) -> contextlib.AbstractContextManager[Folder]:
        return self._root.made_folder(self.file_name(guest))


def _read_marker(path: Path) -> Marker:
    with store_errors(path):
        try:
            folder = Folder.open(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError("there is no store here", where=path) from None
    with folder:
        try:
            return Marker.of_text(folder.read(MARKER, _LONGEST_MARKER).decode())
        except FileNotFoundError:
            raise StoreError(
                f"this folder is no fleece store (it has no {MARKER})",
                where=path,
                hint="a new store is made in a folder that is empty or not there yet",
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"the store's marker cannot be read ({text})", where=path / MARKER
            ) from error


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a store can be made: nothing is there, or nothing that anybody has put there.

    What file systems and NASes have in an empty folder does not count, nor what a killed attempt
    to make a store left.
    """
    with store_errors(path):
        try:
            folder = Folder.open(path)
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False
        with folder:
            return all(
                is_furniture(found)
                or (found.kind is Kind.FILE and found.name.startswith((NEW_MARKER, SPOOL)))
                for found in folder.entries()
            )


@contextlib.contextmanager
def spooled(path: str | os.PathLike[str]) -> Iterator[DeltaFile]:
    """A file, in a store's folder or what shall become one, for a delta that is not known yet.

    A folder that was made for it and did not become a store is gone afterwards.
    """
    folder = Path(path)
    with store_errors(folder):
        new = not folder.exists()
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    try:
        with spool.spooled(Root(folder)) as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            if new and is_free(folder):
                folder.rmdir()


def _place_marker(folder: Folder, text: str, mode: int) -> None:
    """Write the marker if none is there; another process may do so at the same time."""
    temporary = f"{NEW_MARKER}{secrets.token_hex(8)}"
    try:
        folder.put_new(temporary, text.encode(), mode)
        # If it is gone, or the name is taken, another process has placed one.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            name_new(temporary, MARKER, folder.descriptor)
    finally:
        with contextlib.suppress(FileNotFoundError):
            folder.remove(temporary)
    for found in folder.entries():
        if found.name.startswith(NEW_MARKER) and found.kind is Kind.FILE:
            with contextlib.suppress(FileNotFoundError):
                folder.remove(found.name)
    folder.sync()
