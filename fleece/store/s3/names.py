"""What the objects of a store in a bucket are called, below the store's prefix.

::

    fleece-store.json                       the marker; notes of audits lie beside it
    .import/WRITER.NONCE                    a delta that comes from outside; it can stay there
    GUEST/commits/0000000007.json           the guest's seventh change (`fleece.store.s3.change`)
    GUEST/data/POINT.BASE.WRITER.NONCE/DISK.fleece
                                            a delta, seen as soon as a change names it
    GUEST/notes/POINT/NAME                  a small object beside a point's deltas

BASE is the number of the guest's last change when the writer began: only change BASE + 1 can be the
one that makes it seen. WRITER tells which engines share one lock (`fleece.store.s3.lock`).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

COMMITS, DATA, NOTES = "commits", "data", "notes"
SPOOL = ".import"
ALONE = "single-writer"
"""An object of this name says that a store has one writer, by its owner's word."""

_NUMBER = re.compile(r"([0-9]{10})\.json")
_FOLDER = re.compile(r"([^/]+)\.([0-9]{10})\.([0-9a-f]{8})\.([0-9a-f]{16})")
_SPOOLED = re.compile(r"([0-9a-f]{8})\.[0-9a-f]{16}")


@dataclass(frozen=True)
class DataFolder:
    """What the objects lie under that one writer makes at once.

    Attributes:
        name: of it, all that follows included.
        stem: of the point, for people.
        base: number of the guest's last change when it was begun.
        writer: who began it.
    """

    name: str
    stem: str
    base: int
    writer: str

    @staticmethod
    def new(stem: str, base: int, writer: str) -> DataFolder:
        """One that nobody has used."""
        name = f"{stem}.{base:010d}.{writer}.{secrets.token_hex(8)}"
        return DataFolder(name, stem, base, writer)

    @staticmethod
    def parse(name: str) -> DataFolder | None:
        """The one that a name is of; None: none of ours."""
        found = _FOLDER.fullmatch(name)
        return None if found is None else DataFolder(name, found[1], int(found[2]), found[3])


def change_key(guest: str, number: int) -> str:
    """Of a guest's change."""
    return f"{guest}/{COMMITS}/{number:010d}.json"


def change_number(name: str) -> int | None:
    """That the last part of a change's key says; None: it is none."""
    found = _NUMBER.fullmatch(name)
    return None if found is None else int(found[1])


def spool_key(writer: str) -> str:
    """A new one, of a delta that comes from outside."""
    return f"{SPOOL}/{writer}.{secrets.token_hex(8)}"


def spool_writer(name: str) -> str | None:
    """Who made the object of such a key's last part; None: it is none."""
    found = _SPOOLED.fullmatch(name)
    return None if found is None else found[1]
