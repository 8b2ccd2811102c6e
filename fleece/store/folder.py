"""A store in a plain folder: `STORE/guest/point/disk.fleece`.

A point is written into a folder whose name begins with `.partial-`, made durable, and renamed.
Names are for people; what counts is in the headers (`fleece.store.catalogue`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import io
import math
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fleece.delta.header import Header, PointRef
from fleece.delta.partial import Proven
from fleece.errors import DeltaError, StoreError
from fleece.hashing import Buffer
from fleece.keys import Secret
from fleece.naming import name_new
from fleece.store.catalogue import Access, Catalogue, Damaged, Entry
from fleece.store.marker import Marker, StoreWishes
from fleece.writeback import Writeback

MARKER = "fleece-store.json"
SUFFIX = ".fleece"
_PARTIAL = ".partial-"
_SPOOL = ".import-"
_NEW_MARKER = f".{MARKER}."
_LOCK = ".lock"
_DISTRUST = "audit-failed-"
_LONGEST_NAME = 200
_LONGEST_MARKER = 4096
_GATHERED = 256 * 1024
"""Bytes of short writes that a delta's file gathers; longer ones go to the system at once."""
GATHERED_FOR = 0.1
"""Seconds between two writes after which nothing stays gathered."""


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
        with store_errors(self.path):
            if not self.path.is_dir():
                raise StoreError("there is no store here", where=self.where)
        marker = self.path / MARKER
        try:
            with open(marker) as file:
                found = Marker.of_text(file.read(_LONGEST_MARKER))
        except FileNotFoundError:
            raise StoreError(
                f"this folder is no fleece store (it has no {MARKER})",
                where=self.where,
                hint="a new store is made in a folder that is empty or not there yet",
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"the store's marker cannot be read ({error})", where=marker
            ) from error
        self.marker = found
        self.id = found.id
        self.protection = found.protection(secret, self.where)
        self.algorithm = found.algorithm(self.protection)
        self.access = Access(secret, self.protection, self.algorithm.name)

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
            folder.mkdir(parents=True, exist_ok=True)
            _place_marker(folder, marker.to_text())
            sync_folder(folder.parent)
        return FolderStore(folder, secret)

    def catalogue(self) -> Catalogue:
        """Read every delta's own words.

        Raises:
            StoreError: the folder cannot be listed. A listing that fails is never an empty one.
        """
        entries: list[Entry] = []
        damaged: list[Damaged] = []
        with store_errors(self.path):
            for path in self._delta_files():
                try:
                    entries.append(self.access.read_entry(path))
                except DeltaError as error:
                    damaged.append(Damaged(path, error))
        return Catalogue(entries, damaged, self.where, self.access)

    def _delta_files(self) -> Iterator[str]:
        for guest in _subfolders(self.path):
            for point in _subfolders(guest):
                for item in sorted(os.scandir(point), key=lambda found: found.name):
                    if item.name.endswith(SUFFIX) and item.is_file(follow_symlinks=False):
                        yield item.path

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
    def locked(self, guest: str, patience: float = 0) -> Iterator[None]:
        """Be the only one that writes this guest's points. The lock dies with its holder.

        Args:
            guest: whose points.
            patience: seconds to wait for another holder.

        Raises:
            StoreError: another process holds it, or the file system cannot lock.
        """
        with store_errors(self.path):
            folder = self._guest_folder(guest)
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                _lock(descriptor, patience)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
                raise StoreError(
                    f"another backup of {guest} into this store is running "
                    f"(process {holder or 'unknown'})",
                    where=self.where,
                ) from error
            except OSError as error:
                raise _store_error(error, folder / _LOCK) from error
            # For messages alone: a full store must not keep prune from making room.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def unfinished(self, guest: str) -> list[UnfinishedPoint]:
        """What dead runs left of points, as far as a header of each disk is there, newest first.

        The lock must be held.
        """
        with store_errors(self.path):
            found = [self._unfinished(folder) for folder in self._partials(guest)]
        points = [point for point in found if point is not None and point.guest == guest]
        return sorted(points, key=lambda point: -point.ref.sequence)

    def resume(self, left: UnfinishedPoint) -> PartialPoint:
        """Go on with a point that a dead run left; the lock must be held."""
        final = _final_name(left.ref.id, left.ref.sequence)
        return PartialPoint(left.folder, left.folder.with_name(final), self)

    def _unfinished(self, folder: Path) -> UnfinishedPoint | None:
        """The point in a partial folder, if its files are those that their own headers name."""
        heads: dict[str, Header] = {}
        for item in os.scandir(folder):
            if not item.is_file(follow_symlinks=False):
                return None
            try:
                with self.access.partial(item.path) as left:
                    heads[item.name] = left.header
            except DeltaError:
                return None
        first = next(iter(heads.values()), None)
        if first is None or folder.name != f"{_PARTIAL}{first.point.id}":
            return None
        common = {(head.guest, head.chain, head.point, head.disks) for head in heads.values()}
        names = [self.file_name(disk) + SUFFIX for disk in first.disks]
        fits = len(common) == 1 and sorted(names) == sorted(heads)
        if not fits or any(heads[self.file_name(h.disk) + SUFFIX] != h for h in heads.values()):
            return None
        return UnfinishedPoint(folder, tuple(heads[name] for name in names))

    def remove_partial(self, guest: str, keep: UnfinishedPoint | None = None) -> list[str]:
        """Remove what dead runs left of points, but one; the lock must be held. Gives the paths."""
        removed = []
        with store_errors(self.path):
            for folder in self._partials(guest):
                if keep is None or folder != keep.folder:
                    remove_folder(folder)
                    removed.append(str(folder))
        return removed

    def take_in(self, file: DeltaFile, entry: Entry, beside: Entry | None) -> Path:
        """Give a spooled delta, checked and durable, its place; the guest's lock must be held.

        Args:
            file: the spooled file.
            entry: what it is.
            beside: another disk's delta of the same point; None: it is the first.

        Raises:
            StoreError: something else has its name, or the store cannot be written.
        """
        head = entry.header
        name = self.file_name(head.disk) + SUFFIX
        with store_errors(self.path):
            guest = self._guest_folder(head.guest)
            final = guest / _final_name(head.point.id, head.point.sequence)
            if beside is not None:
                final = Path(beside.path).parent
            if final.exists():
                _rename_to_new(file.path, final / name)
                sync_folder(final)
                return final / name
            partial = guest / f"{_PARTIAL}{head.point.id}"
            if partial.exists():
                remove_folder(partial)
            partial.mkdir()
            os.rename(file.path, partial / name)
            sync_folder(partial)
            os.rename(partial, final)
            sync_folder(guest)
            return final / name

    def distrust(self, chain: str, disk: str, reason: str) -> None:
        """Note durably that the bitmaps of a chain's disk missed a write; a guest's lock is held.

        The note lies beside the store's marker, under the chain's own id: it is about the chain, so
        it goes where the chain goes, and nothing that happens to QEMU can lose it.
        """
        with store_errors(self.path):
            write_durably(self._note(chain, disk), reason + "\n")

    def distrusted(self, chain: str, disk: str) -> str | None:
        """Why the bitmaps of a chain's disk must not be believed; None: they may.

        Raises:
            StoreError: that cannot be read. A note that cannot be read is not none.
        """
        note = self._note(chain, disk)
        with store_errors(note):
            try:
                return note.read_text(errors="replace").strip() or "an audit failed"
            except FileNotFoundError:
                return None

    def trust(self, chain: str, disk: str) -> None:
        """All of the disk was read: what an audit found is mended."""
        note = self._note(chain, disk)
        with store_errors(note):
            if note.exists():
                note.unlink()
                sync_folder(self.path)

    def _note(self, chain: str, disk: str) -> Path:
        return self.path / f"{_DISTRUST}{chain}-{self.file_name(disk)}"

    def _partials(self, guest: str) -> list[Path]:
        found = _subfolders(self._guest_folder(guest), hidden=True)
        return [folder for folder in found if folder.name.startswith(_PARTIAL)]

    def begin(self, guest: str, point: str, sequence: int) -> PartialPoint:
        """Start to write a point; the lock must be held."""
        with store_errors(self.path):
            parent = self._guest_folder(guest)
            partial = parent / f"{_PARTIAL}{point}"
            partial.mkdir()
        return PartialPoint(partial, parent / _final_name(point, sequence), self)

    def file_name(self, name: str) -> str:
        """What the folder of a guest, or the file of a disk, is called; hidden by encryption."""
        if self.protection is None or not self.protection.encrypted:
            return safe_name(name)
        return hmac.digest(self.protection.key.of_names, name.encode(), "sha256").hex()[:32]

    def _guest_folder(self, guest: str) -> Path:
        folder = self.path / self.file_name(guest)
        if not folder.is_dir():
            folder.mkdir()
            sync_folder(self.path)
        return folder


@dataclass(frozen=True)
class UnfinishedPoint:
    """What a dead run left of a point: for each disk a file with a whole header, and no other file.

    Attributes:
        folder: where it is.
        heads: the headers, in the order of the point's disks.
    """

    folder: Path
    heads: tuple[Header, ...]

    @property
    def guest(self) -> str:
        """Whose point it is."""
        return self.heads[0].guest

    @property
    def chain(self) -> str:
        """The line of points that it belongs to."""
        return self.heads[0].chain

    @property
    def ref(self) -> PointRef:
        """Which point it is."""
        return self.heads[0].point


class PartialPoint:
    """A point that is being written. Either `commit` or `discard` ends it."""

    def __init__(self, folder: Path, final: Path, store: FolderStore) -> None:
        self.folder = folder
        self.final = final
        self._store = store
        self._files: dict[str, DeltaFile] = {}

    def file_name(self, disk: str) -> str:
        """The name of a disk's delta within its point's folder."""
        return self._store.file_name(disk) + SUFFIX

    def place(self, disk: str) -> str:
        """Where a disk's delta will be."""
        return str(self.final / self.file_name(disk))

    def create(self, disk: str) -> DeltaFile:
        """The file of one disk's delta, to write front to back."""
        path = self.folder / self.file_name(disk)
        with store_errors(path):
            made = DeltaFile(path)
        self._files[disk] = made
        return made

    def reopen(self, disk: str) -> tuple[DeltaFile, Proven]:
        """The file of one disk's delta that a dead run left, cut to what is proven of it.

        Returns:
            (file, proven): the file is written on from the proven part's end.

        Raises:
            StoreError: it cannot be read or cut.
        """
        path = self.folder / self.file_name(disk)
        with self._store.access.partial(str(path)) as left:
            proven = left.proven()
        with store_errors(path):
            made = DeltaFile(path, keep=proven.end)
        self._files[disk] = made
        return made, proven

    def commit(self) -> None:
        """Make the point durable and visible; when this returns, it is both.

        Raises:
            StoreError: it is not in the store.
        """
        with store_errors(self.folder):
            for file in self._files.values():
                file.close_durably()
            sync_folder(self.folder)
            for file in self._files.values():
                self._store.access.read_entry(str(file.path))
            os.rename(self.folder, self.final)
            sync_folder(self.final.parent)

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        for file in self._files.values():
            file.abandon()
        with contextlib.suppress(OSError):
            remove_folder(self.folder)


class DeltaFile:
    """The sink of one delta, whose every error is a `StoreError`. For any number of threads.

    Short writes are gathered: a delta of scattered clusters has a record and a frame for each, and
    a worker that waits for the system holds the others up. The first one, the header, is not; and
    `GATHERED_FOR` bounds what is lost if the process is killed.

    Args:
        path: of a new file.
        keep: bytes of a file that is there already, to go on behind; None: it must not be there.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = path
        raw = io.FileIO(path, "x" if keep is None else "r+")
        if keep is not None:
            raw.truncate(keep)
            raw.seek(keep)
        self._file = io.BufferedWriter(raw, _GATHERED)
        self._writeback = Writeback(raw.fileno())
        self._flushed = -math.inf

    def write(self, data: Buffer) -> int:
        """Write `data`; gives how much."""
        try:
            taken = self._file.write(data)
            if time.monotonic() > self._flushed + GATHERED_FOR:
                self._flush()
            self._writeback.wrote(taken)
            return taken
        except OSError as error:
            raise _store_error(error, self.path) from error

    def hold(self) -> None:
        """Lock it for as long as it is open: it is in use."""
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def sync(self) -> None:
        """Make what was written durable."""
        with store_errors(self.path):
            self._sync()

    def close_durably(self) -> None:
        """fsync and close."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        self._flush()
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def abandon(self) -> None:
        """Close, whatever became of it."""
        with contextlib.suppress(OSError):
            self._file.close()


def safe_name(name: str) -> str:
    """A file name for any name: reversible as far as it is short, never hidden, never a path."""
    text = quote(name, safe=" +=,@()")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 17] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return text


def _lock(descriptor: int, patience: float) -> None:
    limit = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= limit:
                raise
            time.sleep(0.1)


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a store can be made: nothing is there, or at most what a killed attempt left."""
    folder = Path(path)
    with store_errors(folder):
        if not folder.exists():
            return True
        left = (_NEW_MARKER, _SPOOL)
        return folder.is_dir() and all(item.name.startswith(left) for item in folder.iterdir())


@contextlib.contextmanager
def spooled(path: str | os.PathLike[str]) -> Iterator[DeltaFile]:
    """A file, in a store's folder or what shall become one, for a delta that is not known yet.

    Afterwards it is gone, if `FolderStore.take_in` did not take it; so is a folder that was made
    for it and did not become a store. What a killed process left of such files is removed first.
    """
    folder = Path(path)
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_spooled(folder)
        file = DeltaFile(folder / f"{_SPOOL}{secrets.token_hex(8)}")
        file.hold()
    try:
        yield file
    finally:
        file.abandon()
        with contextlib.suppress(OSError):
            file.path.unlink(missing_ok=True)
            if is_free(folder):
                folder.rmdir()


def _remove_spooled(folder: Path) -> None:
    for item in os.scandir(folder):
        if item.name.startswith(_SPOOL) and item.is_file(follow_symlinks=False):
            with open(item.path, "rb") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(item.path)


def _place_marker(folder: Path, text: str) -> None:
    """Write the marker if none is there; another process may do so at the same time."""
    temporary = folder / f"{_NEW_MARKER}{secrets.token_hex(8)}"
    try:
        _write(temporary, text)
        # If it is gone, or the name is taken, another process has placed one.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            name_new(temporary, folder / MARKER)
    finally:
        temporary.unlink(missing_ok=True)
    for item in folder.iterdir():
        if item.name.startswith(_NEW_MARKER):
            item.unlink(missing_ok=True)
    sync_folder(folder)


def _subfolders(folder: Path, *, hidden: bool = False) -> list[Path]:
    found = [Path(item.path) for item in os.scandir(folder) if item.is_dir(follow_symlinks=False)]
    return sorted(path for path in found if hidden or not path.name.startswith("."))


def _rename_to_new(path: Path, final: Path) -> None:
    """Rename a file whose new name must be free; the lock on the guest keeps it so."""
    if os.path.lexists(final):
        raise StoreError(
            "is there already, and it is no whole delta", where=final, hint="move it away first"
        )
    os.rename(path, final)


def _final_name(point: str, sequence: int) -> str:
    return f"{sequence:06d}-{point}"


def remove_folder(folder: Path) -> None:
    """Remove a folder and the files in it."""
    for item in os.scandir(folder):
        os.unlink(item.path)
    folder.rmdir()


def _write(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_durably(path: Path, text: str) -> None:
    """Put a text into a file: all of it, or the file is as it was."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        _write(temporary, text)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable what has which name in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def store_errors(where: Path) -> Iterator[None]:
    """Turn an operating system's error into one about the store."""
    try:
        yield
    except OSError as error:
        raise _store_error(error, where) from error


def _store_error(error: OSError, where: Path) -> StoreError:
    hints = {
        errno.ENOSPC: "make room in the store; nothing was committed",
        errno.EDQUOT: "the quota is used up; nothing was committed",
        errno.EACCES: "the user that runs fleece must be able to write there",
        errno.ENOLCK: "the store's file system must be able to lock files",
    }
    text = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(text, where=error.filename or where, hint=hints.get(error.errno or 0))
