"""Notes that an audit found a chain's bitmaps wrong: small objects beside the store's marker."""

from __future__ import annotations

from fleece.store.catalogue import Access
from fleece.store.envelope import OVERHEAD, unwrap, wrap
from fleece.store.errors import Gone
from fleece.store.names import DISTRUST

_LONGEST = 4096


def distrust(access: Access, chain_id: str, disk: str, reason: str) -> None:
    """Note durably that a chain's bitmaps of a disk missed a write; the guest's lock is held.

    Args:
        access: of the store.
        chain_id, disk: whose.
        reason: what was found.
    """
    subject = access.note_name(chain_id, disk)
    text = reason.encode()[: _LONGEST - OVERHEAD].decode(errors="ignore")
    access.backend.sweep(DISTRUST + subject)
    access.backend.put(DISTRUST + subject, wrap(access.protection, subject, text))


def distrusted(access: Access, chain_id: str, disk: str) -> str | None:
    """Why they must not be believed; None: they may.

    Raises:
        StoreError: that cannot be read. A note that cannot be read is not none.
    """
    subject = access.note_name(chain_id, disk)
    try:
        raw = access.backend.get(DISTRUST + subject, _LONGEST)
    except Gone:
        return None
    text = unwrap(access.protection, subject, raw)
    return (text or "").strip() or "an audit failed"


def trust(access: Access, chain_id: str, disk: str) -> None:
    """Take the note away: all of the disk was read; the guest's lock is held."""
    name = DISTRUST + access.note_name(chain_id, disk)
    access.backend.sweep(name)
    access.backend.delete(name)
