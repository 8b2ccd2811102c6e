"""Change what a store already holds: replace a delta, drop a point, pin one. Each step is atomic.

A killed step leaves either the old state or the new one, and at most a hidden file or folder, which
`tidy` removes. The guest's lock must be held for all but reading pins.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fleece.errors import DeltaError, StoreError
from fleece.store.catalogue import Catalogue, Entry, StoredPoint
from fleece.store.folder import (
    SUFFIX,
    DeltaFile,
    remove_folder,
    store_errors,
    sync_folder,
    write_durably,
)

_UNFINISHED = ".merging"
_DROPPED = ".dropped-"
_PIN = ".pin.json"


class Replacement:
    """A new file for a delta that the store holds. Either `commit` or `discard` ends it.

    It must state the same disk: the same point and root. Those that build on it need no change.

    Args:
        entry: what it replaces.
        read: describes a delta of the store.
    """

    def __init__(self, entry: Entry, read: Callable[[str], Entry]) -> None:
        self._read = read
        self._old = entry
        self._path = Path(entry.path)
        temporary = self._path.with_name(f".{self._path.name}{_UNFINISHED}")
        with store_errors(temporary):
            self.file = DeltaFile(temporary)

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
            os.rename(self.file.path, self._path)
            sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove what was written, as far as that is possible."""
        self.file.abandon()
        with contextlib.suppress(OSError):
            os.unlink(self.file.path)


def folders_of(catalogue: Catalogue, point: StoredPoint) -> list[Path]:
    """The folders that hold a point's deltas, copies too.

    Raises:
        StoreError: one cannot be dropped at once, because a delta of another point or a folder is
            in it, or because it does not hold all of the point's disks.
    """
    mine = _copies(catalogue, point)
    folders = sorted({Path(entry.path).parent for entry in mine})
    for folder in folders:
        _no_folder_in(folder)
        others = [e for e in catalogue.entries if Path(e.path).parent == folder and e not in mine]
        here = {e.header.disk for e in mine if Path(e.path).parent == folder}
        if others or here != point.disks.keys():
            raise StoreError(
                f"point {point.id} does not have a folder of its own",
                where=folder,
                hint="put each point's deltas into one folder STORE/GUEST/NAME",
            )
    return folders


def _copies(catalogue: Catalogue, point: StoredPoint) -> list[Entry]:
    return [copy for entry in point.disks.values() for copy in catalogue.copies(entry)]


def _no_folder_in(folder: Path) -> None:
    with store_errors(folder):
        for item in os.scandir(folder):
            if item.is_dir(follow_symlinks=False):
                raise StoreError(
                    "is a folder in the folder of a point, and none of fleece's",
                    where=item.path,
                    hint="move it away",
                )


def drop(folders: Iterable[Path]) -> None:
    """Take the folders of one point out of the store: all of a folder goes at once."""
    for folder in folders:
        with store_errors(folder):
            gone = folder.with_name(_DROPPED + folder.name)
            os.rename(folder, gone)
            sync_folder(folder.parent)
            remove_folder(gone)


def tidy(catalogue: Catalogue, guest: str) -> list[str]:
    """Remove what killed steps left in the folders of a guest's points. Gives the paths."""
    removed = []
    with store_errors(Path(catalogue.where)):
        points = {Path(e.path).parent for e in catalogue.entries if e.header.guest == guest}
        for folder in sorted(points):
            for item in _listed(folder):
                if item.name.startswith(".") and item.name.endswith(SUFFIX + _UNFINISHED):
                    item.unlink()
                    removed.append(str(item))
        for parent in sorted({folder.parent for folder in points}):
            for item in _listed(parent):
                if item.name.startswith(_DROPPED):
                    remove_folder(item)
                    removed.append(str(item))
    return removed


def _listed(folder: Path) -> Iterator[Path]:
    yield from sorted(Path(item.path) for item in os.scandir(folder))


def pin(catalogue: Catalogue, point: StoredPoint) -> None:
    """Protect a point, durably. Pinning twice is once."""
    said = json.dumps({"format": "fleece pin", "version": 1, "point": point.id})
    marker = _pins(catalogue, point)[0]
    with store_errors(marker):
        write_durably(marker, said + "\n")


def unpin(catalogue: Catalogue, point: StoredPoint) -> bool:
    """End the protection; gives whether there was any."""
    found = is_pinned(catalogue, point)
    for marker in _pins(catalogue, point):
        with store_errors(marker), contextlib.suppress(FileNotFoundError):
            os.unlink(marker)
            sync_folder(marker.parent)
    return found


def is_pinned(catalogue: Catalogue, point: StoredPoint) -> bool:
    """Whether a point is protected. That a marker is beside any copy counts, not what is in it.

    Raises:
        StoreError: that cannot be told.
    """
    for marker in _pins(catalogue, point):
        with store_errors(marker), contextlib.suppress(FileNotFoundError):
            os.lstat(marker)
            return True
    return False


def _pins(catalogue: Catalogue, point: StoredPoint) -> list[Path]:
    folders = {Path(entry.path).parent for entry in _copies(catalogue, point)}
    return sorted(folder / f"{point.id}{_PIN}" for folder in folders)
