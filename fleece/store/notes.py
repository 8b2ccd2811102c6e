"""Notes that an audit found a chain's bitmaps wrong: files in the store's own folder."""

from __future__ import annotations

import contextlib

from fleece.folder import Folder
from fleece.store.catalogue import Access
from fleece.store.envelope import OVERHEAD, unwrap, wrap
from fleece.store.errors import store_errors
from fleece.store.names import DISTRUST

_LONGEST = 4096


def distrust(access: Access, chain: str, disk: str, reason: str) -> None:
    """Note durably that a chain's bitmaps of a disk missed a write.

    Args:
        access: of the store.
        chain, disk: whose.
        reason: what was found.
    """
    subject = access.note_name(chain, disk)
    text = reason.encode()[: _LONGEST - OVERHEAD].decode(errors="ignore")
    with store_errors(access.root.path), access.root.folder() as folder:
        _tidy(folder, DISTRUST + subject)
        raw = wrap(access.protection, subject, text)
        folder.put(DISTRUST + subject, raw, access.root.mode)


def distrusted(access: Access, chain: str, disk: str) -> str | None:
    """Why they must not be believed; None: they may.

    Raises:
        StoreError: that cannot be read. A note that cannot be read is not none.
    """
    subject = access.note_name(chain, disk)
    with store_errors(access.root.path), access.root.folder() as folder:
        try:
            raw = folder.read(DISTRUST + subject, _LONGEST)
        except FileNotFoundError:
            return None
    text = unwrap(access.protection, subject, raw)
    return (text or "").strip() or "an audit failed"


def trust(access: Access, chain: str, disk: str) -> None:
    """Take the note away: all of the disk was read."""
    name = DISTRUST + access.note_name(chain, disk)
    with store_errors(access.root.path), access.root.folder() as folder:
        _tidy(folder, name)
        if folder.has(name):
            folder.remove(name)
            folder.sync()


def _tidy(folder: Folder, name: str) -> None:
    """Remove what killed runs did not finish to write of a note; the guest's lock is held."""
    for left in folder.unfinished(name):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            folder.remove(left)
