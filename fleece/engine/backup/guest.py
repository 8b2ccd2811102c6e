"""Whose points are meant."""

from __future__ import annotations

from fleece.delta.header import is_name
from fleece.errors import UsageError
from fleece.source.base import Source


def guest_name(source: Source, wanted: str | None) -> str:
    """The guest's name in the store.

    Args:
        source: whose own name it is, unless another one is wanted.
        wanted: by the caller.

    Raises:
        UsageError: no header could hold it.
    """
    guest = source.guest() if wanted is None else wanted
    if not is_name(guest):
        raise UsageError("the guest's name must be printable, of 1 to 1024 characters")
    return guest
