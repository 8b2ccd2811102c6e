"""What a delta is read out of: bytes under a name, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class Blob(Protocol):
    """A finished piece of bytes, open for reading by any number of threads.

    Attributes:
        name: where it is, for messages.
        length: in bytes.
    """

    name: str
    length: int

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            DeltaError: it ends before.
            UnreadableError: what it lies on cannot read it.
            StoreError: it was replaced or removed meanwhile, or it cannot be read for a reason that
                is none of its own.
        """
        ...

    def data_from(self, position: int) -> int:
        """Where it next has data, at or behind a position; `length`: it has none there.

        What it cannot tell apart from data it gives as data.
        """
        ...

    def close(self) -> None:
        """Let it go; safe to repeat."""
        ...


@runtime_checkable
class RemembersPages(Protocol):
    """One that may remember a delta's pages from one run to the next."""

    def pages_at(self, places: Sequence[tuple[int, int]]) -> None:
        """Be told where the pages are: position and length of each, in their order."""
        ...

    def forget_pages(self) -> bool:
        """Forget what is remembered of the pages, so that they are read anew.

        Returns:
            Whether anything was.
        """
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """One that reads ahead of whoever goes through it: each read by itself takes long."""

    def in_order(self, position: int) -> None:
        """Be told that all from a position on is read next, in order."""
        ...
