"""Change what a store already holds: replace a delta, drop a point, pin one. Each step is atomic.

A killed step leaves either the old state or the new one, and at most a hidden file or folder, which
`tidy` removes. The guest's lock must be held for all but reading pins.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fleece.errors import DeltaError, StoreError
from fleece.folder import Folder, Kind
from fleece.store.catalogue import Catalogue, Entry, StoredPoint
from fleece.store.envelope import wrap
from fleece.store.errors import store_errors
from fleece.store.names import DROPPED, MERGING, PIN, STEM, is_unfinished
from fleece.store.removal import remove_folder
from fleece.store.root import Root
from fleece.store.sink import DeltaFile


class Replacement:
    """A new file for a delta that the store holds. Either `commit` or `discard` ends it.

    It must state the same disk: the same point and root. Those that build on it need no change.

    Args:
        entry: what it replaces.
        read: describes a delta of the store.
        root: of the store.
    """

    def __init__(self, entry: Entry, read: Callable[[str], Entry], root: Root) -> None:
        self._read = read
        self._old = entry
        self._path = Path(entry.path)
        self._root = root
        temporary = f".{self._path.name[:STEM]}{MERGING}-{secrets.token_hex(8)}"
        with store_errors(self._path), root.holding(self._path) as (folder, _):
            descriptor = folder.new_file(temporary, root.mode)
            self.file = DeltaFile(self._path.with_name(temporary), descriptor)

    def commit(self) -> None:
        """Take the old file's place; when this returns, it has, durably.

        Raises:
            DeltaError: the new file does not state the same disk; the old one stays.
            StoreError: the old one stays.
        """
        with store_errors(self._path):
            self.file.close_durably()
            new = self._read(str(self.file.path))
            if (new.root, new.header.point, new.header.disk) != (
                self._old.root,
                self._old.header.point,
                self._old.header.disk,
            ):
                raise DeltaError("a merged delta has another root", where=self._path)
            with self._root.holding(self._path) as (folder, name):
                folder.rename(self.file.path.name, name)
                folder.sync()

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        self.file.abandon()
        with contextlib.suppress(OSError), self._root.holding(self.file.path) as (folder, name):
            folder.remove(name)


def folders_of(catalogue: Catalogue, point: StoredPoint) -> list[Path]:
    """The folders that hold a point's deltas, copies too.

    Raises:
        StoreError: one cannot be dropped at once, because a delta of another point is in it, or
            because it does not hold all of the point's disks.
    """
    mine = _copies(catalogue, point)
    paths = {entry.path for entry in mine}
    folders = sorted({Path(path).parent for path in paths})
    for folder in folders:
        held = catalogue.in_folder(str(folder))
        here = {entry.header.disk for entry in held}
        if any(entry.path not in paths for entry in held) or here != point.disks.keys():
            raise StoreError(
                f"point {point.id} does not have a folder of its own",
                where=folder,
                hint="put each point's deltas into one folder STORE/GUEST/NAME",
            )
    return folders


def _copies(catalogue: Catalogue, point: StoredPoint) -> list[Entry]:
    return [copy for entry in point.disks.values() for copy in catalogue.copies(entry)]


def drop(root: Root, folders: Iterable[Path]) -> list[str]:
    """Take the folders of one point out of the store: all of a folder goes at once.

    Args:
        root: of the store.
        folders: of the point.

    Returns:
        Paths of folders in which what is not fleece's stays.
    """
    kept: list[str] = []
    for folder in folders:
        with store_errors(folder), root.holding(folder) as (guest, name):
            gone = f"{DROPPED}{name[:STEM]}-{secrets.token_hex(8)}"
            guest.rename(name, gone)
            guest.sync()
            kept += _path(guest, remove_folder(guest, gone))
    return kept


def tidy(catalogue: Catalogue, guest: str) -> list[str]:
    """Remove what killed steps left in the folders of a guest's points. Gives the paths."""
    removed: list[str] = []
    root = catalogue.root
    with store_errors(catalogue.where):
        points = {Path(e.path).parent for e in catalogue.entries if e.header.guest == guest}
        for point in sorted(points):
            with root.folder(*root.names(point)) as folder:
                removed += _tidied(folder)
        for parent in sorted({point.parent for point in points}):
            with root.folder(*root.names(parent)) as folder:
                for found in folder.entries():
                    if found.kind is Kind.FOLDER and found.name.startswith(DROPPED):
                        remove_folder(folder, found.name)
                        removed.append(str(folder.path / found.name))
    return removed


def _tidied(folder: Folder) -> Iterator[str]:
    for found in folder.entries():
        if is_unfinished(found):
            with contextlib.suppress(FileNotFoundError):  # a verification's note that is done
                folder.remove(found.name)
                yield str(folder.path / found.name)


def _path(folder: Folder, name: str | None) -> list[str]:
    return [] if name is None else [str(folder.path / name)]


def pin(catalogue: Catalogue, point: StoredPoint) -> None:
    """Protect a point, durably. Pinning twice is once."""
    said = json.dumps({"format": "fleece pin", "version": 1, "point": point.id})
    root, marker = catalogue.root, _pins(catalogue, point)[0]
    with store_errors(marker), root.holding(marker) as (folder, name):
        folder.put(name, wrap(catalogue.access.protection, "pin", said), root.mode)


def unpin(catalogue: Catalogue, point: StoredPoint) -> bool:
    """End the protection; gives whether there was any."""
    found = False
    for marker in _pins(catalogue, point):
        with store_errors(marker), catalogue.root.holding(marker) as (folder, name):
            if folder.has(name):
                folder.remove(name)
                folder.sync()
                found = True
    return found


def is_pinned(catalogue: Catalogue, point: StoredPoint) -> bool:
    """Whether a point is protected. That a marker is beside any copy counts, not what is in it.

    Raises:
        StoreError: that cannot be told.
    """
    for marker in _pins(catalogue, point):
        with store_errors(marker):
            if catalogue.root.has(marker):
                return True
    return False


def _pins(catalogue: Catalogue, point: StoredPoint) -> list[Path]:
    name = catalogue.access.point_name(point.id)
    folders = {Path(entry.path).parent for entry in _copies(catalogue, point)}
    return sorted(folder / f"{name}{PIN}" for folder in folders)
