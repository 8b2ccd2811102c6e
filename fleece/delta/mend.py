"""Mend a frame in which one bit is wrong.

Damage to a record costs that record. But without its HEADER nothing of a file can be read, and
without its FOOTER the index is not proven. So of these two small frames a wrong bit is searched
for: one whose hash fits then is the one that was written.
"""

from __future__ import annotations

from fleece.delta.layout import ENVELOPE, SKIPPABLE_MAGIC, Tag
from fleece.hashing import HashAlgorithm

LONGEST = 16 * 1024
"""Bytes of the longest frame that is searched: a fraction of a second."""

_BEHIND = {tag.value for tag in (Tag.RECORD, Tag.TREE, Tag.INDEX, Tag.DIRECTORY)}


def mended(frame: bytes, tag: Tag, algorithm: HashAlgorithm) -> bytes | None:
    """The frame as it was written; None: more than one bit of it is wrong.

    Args:
        frame: damaged, of the right length.
        tag: of the frame.
        algorithm: its hash.
    """
    if not ENVELOPE.size + algorithm.size <= len(frame) <= LONGEST:
        return None
    envelope = ENVELOPE.pack(SKIPPABLE_MAGIC, len(frame) - 8, tag.value)
    own = frame[-algorithm.size :]
    body = bytearray(envelope + frame[ENVELOPE.size : -algorithm.size])
    found = algorithm.digest(body)
    if _wrong_bits(found, own) <= 1:
        return bytes(body) + found
    for at in range(ENVELOPE.size, len(body)):
        for bit in range(8):
            body[at] ^= 1 << bit
            if algorithm.digest(body) == own:
                return bytes(body) + own
            body[at] ^= 1 << bit
    return None


def _wrong_bits(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def header_length(start: bytes) -> int | None:
    """How long a file's HEADER is, by where the next frame begins; None: none is near.

    Its own length may be what is wrong.

    Args:
        start: the file's first `LONGEST` bytes and some.
    """
    magic = SKIPPABLE_MAGIC.to_bytes(4, "little")
    at = start.find(magic, ENVELOPE.size)
    while at >= 0:
        if start[at + 8 : at + ENVELOPE.size] in _BEHIND:
            return at
        at = start.find(magic, at + 1)
    return None
