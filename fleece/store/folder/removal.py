"""Remove folders of fleece's, into which others may have laid something."""

from __future__ import annotations

import contextlib
import errno
import secrets

from fleece.folder import Folder, Kind
from fleece.store.names import DROPPED, KEPT, PARTIAL, STEM, is_dropping, of_point

_DEEPEST = 4
"""Folders within droppings that are removed with them."""


def remove_folder(parent: Folder, name: str) -> str | None:
    """Remove a folder and what is fleece's in it, links themselves and not what they lead to.

    What systems lay beside files (`fleece.store.names.is_dropping`) goes along. Anything else is
    not fleece's to delete: it stays, in a folder whose name begins with `foreign-`.

    Args:
        parent: the folder that it is in.
        name: its name.

    Returns:
        The name that the rest has now; None: there is none.

    Raises:
        OSError: it cannot be removed.
    """
    with parent.folder(name) as folder:
        for found in folder.entries():
            if of_point(found) or (is_dropping(found) and found.kind is not Kind.FOLDER):
                with contextlib.suppress(FileNotFoundError):
                    folder.remove(found.name)
            elif is_dropping(found):
                _remove_droppings(folder, found.name, _DEEPEST)
    try:
        parent.remove_empty(name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
        return _kept(parent, name)
    return None


def _remove_droppings(parent: Folder, name: str, depth: int) -> None:
    """Remove a folder with all that is in it, as far as that is possible: the rest is kept."""
    with contextlib.suppress(OSError):
        with parent.folder(name) as folder:
            for found in folder.entries():
                if found.kind is not Kind.FOLDER:
                    folder.remove(found.name)
                elif depth:
                    _remove_droppings(folder, found.name, depth - 1)
        parent.remove_empty(name)


def _kept(parent: Folder, name: str) -> str | None:
    with parent.folder(name) as folder:
        if all(is_dropping(found) for found in folder.entries()):
            return None  # a file that somebody has open (.nfs0123): the next run removes it
    rest = name.removeprefix(PARTIAL).removeprefix(DROPPED)
    new = f"{KEPT}{rest}"
    if parent.has(new):
        new = f"{new[:STEM]}-{secrets.token_hex(8)}"
    parent.rename(name, new)
    parent.sync()
    return new
