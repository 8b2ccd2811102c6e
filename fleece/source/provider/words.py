"""What is said between fleece and a provider: docs/providers.rst is the protocol."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fleece.source.workfolder import PREFIX

PROTOCOL = 1
"""The version of the protocol that is spoken here."""

LONGEST = 1 << 20
"""Bytes of the longest line."""

MOST_DISKS = 256
MOST_BASES = 1000
MOST_BITMAPS = 64
MOST_WARNINGS = 32
MOST_CHANGES = 1 << 22
"""Ranges that are told of a disk."""

_TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-([0-9]{{6,18}})-([0-9a-f]{{10}})")


class Word(enum.StrEnum):
    """What a provider can be asked to do."""

    HELLO = "hello"
    DESCRIBE = "describe"
    BEGIN = "begin"
    CHANGES = "changes"
    CHECK = "check"
    CLOSE = "close"
    COMMIT = "commit"
    DROP = "drop"
    FORGET = "forget"


class FreezeWish(enum.StrEnum):
    """Whether the guest's file systems are to be frozen for the moment of a point."""

    NO = "no"
    TRY = "try"
    MUST = "must"


LIMITS = {
    Word.HELLO: 20.0,
    Word.DESCRIBE: 60.0,
    Word.BEGIN: 300.0,
    Word.CHANGES: 300.0,
    Word.CHECK: 60.0,
    Word.CLOSE: 60.0,
    Word.COMMIT: 300.0,
    Word.DROP: 60.0,
    Word.FORGET: 300.0,
}
"""Seconds that a provider has for each, unless its hello asks for more."""

LONGEST_LIMIT = 3600
"""Seconds that it may ask for at most."""

ENDING = (Word.CLOSE, Word.COMMIT, Word.DROP, Word.FORGET)
"""What is asked although the run is interrupted."""


@dataclass(frozen=True)
class Token:
    """What a provider keeps a base by: the point since which it knows what was written.

    Attributes:
        chain_id: whose point it is.
        sequence: of the point in it.
        point: its id.
    """

    chain_id: str
    sequence: int
    point: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.chain_id}-{self.sequence:06d}-{self.point}"

    @staticmethod
    def parse(text: str) -> Token | None:
        """The token that a text is; None: it is none of fleece's."""
        found = _TOKEN.fullmatch(text)
        if found is None:
            return None
        token = Token(found[1], int(found[2]), found[3])
        return token if str(token) == text else None
