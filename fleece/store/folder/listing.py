"""What lies in a store: deltas, and what is not fleece's, which is told and otherwise ignored."""

from __future__ import annotations

import contextlib
import os

from fleece.folder import Folder, Found, Kind
from fleece.store.backend import Listing
from fleece.store.folder.place import Place
from fleece.store.names import (
    is_delta,
    is_furniture,
    is_hidden,
    is_mark,
    of_guest,
    of_point,
    of_store,
)


def look(place: Place, guest: str | None = None) -> Listing:
    """Look through the folders of a store, or through one of a guest.

    A folder without a delta, a lock or the remains of a run in it is none of fleece's, and told as
    one. What goes away meanwhile is not there.

    Raises:
        OSError: a folder cannot be listed. A listing that fails is never an empty one.
    """
    found = Listing()
    with place.folder() as folder:
        for item in folder.entries():
            if guest not in (None, item.name):
                continue
            if item.kind is not Kind.FOLDER or is_hidden(item.name):
                _note(found, folder, item, ours=of_store(item))
            elif not (_readable(folder, item) and _guest(found, folder, item.name)):
                found.foreign.append(str(folder.path / item.name))
    return found


def _note(found: Listing, folder: Folder, item: Found, *, ours: bool) -> None:
    if not ours:
        found.foreign.append(str(folder.path / item.name))


def _readable(folder: Folder, item: Found) -> bool:
    """Whether a folder is worth to look into: `lost+found` is closed to all but root."""
    if is_furniture(item):
        try:
            _items(folder, item.name)
        except PermissionError:
            return False
    return True


def _items(parent: Folder, name: str) -> list[Found] | None:
    """What is in a folder that was listed; None: it is gone by now."""
    try:
        with parent.folder(name) as folder:
            return folder.entries()
    except FileNotFoundError:
        return None


def _guest(found: Listing, parent: Folder, name: str) -> bool:
    """Look through what may be a guest's folder; gives whether it is one."""
    try:
        guest = parent.folder(name)
    except FileNotFoundError:
        return True
    inside = Listing()
    mine = False
    with guest:
        for item in guest.entries():
            if item.kind is not Kind.FOLDER or is_hidden(item.name):
                mine = mine or of_guest(item)
                _note(inside, guest, item, ours=of_guest(item))
                if item.kind is Kind.FOLDER and of_guest(item):
                    _leftover(inside, guest, item.name)
            elif not (_readable(guest, item) and _point(inside, guest, item.name)):
                inside.foreign.append(str(guest.path / item.name))
    mine = mine or bool(inside.deltas)
    if mine:
        found.deltas += inside.deltas
        found.foreign += inside.foreign
        found.marks += inside.marks
        found.stamps |= inside.stamps
    return mine


def _point(found: Listing, parent: Folder, name: str) -> bool:
    """Look through what may be a point's folder; gives whether it is one."""
    try:
        point = parent.folder(name)
    except FileNotFoundError:
        return True
    with point:
        items = point.entries()
        if not any(map(is_delta, items)):
            return False
        for item in items:
            key = f"{parent.path.name}/{name}/{item.name}"
            if is_delta(item):
                _delta(found, point, key)
            elif not _is_ours(item):
                found.foreign.append(str(parent.path / name / item.name))
            elif is_mark(item.name):
                found.marks.append(key)
    return True


def _delta(found: Listing, point: Folder, key: str) -> None:
    """Note a delta, and how it is by now; if it is gone already, whoever opens it finds out."""
    found.deltas.append(key)
    with contextlib.suppress(FileNotFoundError):
        found.stamps[key] = stamp_of(point.stat(key.rpartition("/")[2]))


def stamp_of(status: os.stat_result) -> str:
    """A file's inode, length, and nanoseconds since 1970 when its content last changed."""
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _leftover(found: Listing, parent: Folder, name: str) -> None:
    """Note what is not fleece's in a folder that a run has not finished."""
    try:
        items = _items(parent, name) or []
    except PermissionError:
        found.foreign.append(str(parent.path / name))
        return
    foreign = [item.name for item in items if not _is_ours(item)]
    found.foreign += [str(parent.path / name / item) for item in foreign]


def _is_ours(item: Found) -> bool:
    """A link or a pipe under a name of fleece's is none of its files."""
    return of_point(item) and item.kind is Kind.FILE
