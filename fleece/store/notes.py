"""Notes that an audit found a chain's bitmaps wrong: files in the store's own folder."""

from __future__ import annotations

import contextlib

from fleece.folder import Folder
from fleece.store.errors import store_errors
from fleece.store.names import DISTRUST
from fleece.store.root import Root

_LONGEST = 4096


def distrust(root: Root, subject: str, reason: str) -> None:
    """Note durably that a chain's bitmaps of a disk missed a write.

    Args:
        root: of the store.
        subject: names the chain and its disk, as part of a file's name.
        reason: what was found.
    """
    name = DISTRUST + subject
    with store_errors(root.path), root.folder() as folder:
        _tidy(folder, name)
        folder.put(name, reason.encode()[: _LONGEST - 1] + b"\n", root.mode)


def distrusted(root: Root, subject: str) -> str | None:
    """Why they must not be believed; None: they may.

    Raises:
        StoreError: that cannot be read. A note that cannot be read is not none.
    """
    with store_errors(root.path), root.folder() as folder:
        try:
            text = folder.read(DISTRUST + subject, _LONGEST)
        except FileNotFoundError:
            return None
    return text.decode(errors="replace").strip() or "an audit failed"


def trust(root: Root, subject: str) -> None:
    """Take the note away: all of the disk was read."""
    name = DISTRUST + subject
    with store_errors(root.path), root.folder() as folder:
        _tidy(folder, name)
        if folder.has(name):
            folder.remove(name)
            folder.sync()


def _tidy(folder: Folder, name: str) -> None:
    """Remove what killed runs did not finish to write of a note; the guest's lock is held."""
    for left in folder.unfinished(name):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            folder.remove(left)
