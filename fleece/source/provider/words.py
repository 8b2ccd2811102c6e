"""What is said between fleece and a provider: docs/providers.rst is the protocol."""

from __future__ import annotations

import enum

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


LIMITS: dict[str, float] = {
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
