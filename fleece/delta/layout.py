"""What all frames of a delta share: the envelope, the limits and the field layouts.

A delta is a run of zstd frames and zstd skippable frames (RFC 8878, 3.1.2), so that `zstd -t` walks
it. Every skippable frame of ours is an envelope: a tag, a body, and the hash of all of the frame
before it. Numbers are little-endian.
"""

from __future__ import annotations

import enum
import functools
import struct

import numpy as np

from fleece.errors import DeltaError
from fleece.hashing import HashAlgorithm

SKIPPABLE_MAGIC = 0x184D2A5F
"""The zstd skippable magic that fleece uses, of the sixteen that there are."""

ENVELOPE = struct.Struct("<II4s")
"""Magic, number of bytes that follow the first eight, tag."""

MAX_RECORD = 1024 * 1024
"""The most bytes of disk in one data record."""

MAX_FRAME = MAX_RECORD + 8 * 1024
"""The most bytes of one zstd frame: above what libzstd makes of `MAX_RECORD` random bytes."""

MAX_HEADER = 1024 * 1024
"""The most bytes of a HEADER frame."""

MAX_RECORD_FRAME = 64 * 1024
"""The most bytes of a RECORD frame, without the zstd frame behind it."""

MAX_PAGE = 8 * 1024 * 1024
"""The most bytes of a TREE or INDEX page."""

MAX_DIRECTORY = 16 * 1024 * 1024
"""The most bytes of the DIRECTORY frame: the pages of a petabyte."""

INDEX_PAGE_ROWS = 65536
"""Rows in an INDEX page as this version writes it."""

TREE_PAGE_NODES = 4096
"""The most nodes in a TREE page as this version writes it; fewer if the fan-out is large."""

MAX_SIZE = 1 << 60
"""The largest disk in bytes: far above any, and no sum of two overflows 63 bits."""


class Tag(bytes, enum.Enum):
    """The four letters that say what a frame is. A zstd frame, DATA, bears none itself."""

    KEY = b"FKEY"
    HEADER = b"FHDR"
    RECORD = b"FREC"
    DATA = b"DATA"
    TREE = b"FTRE"
    INDEX = b"FIDX"
    DIRECTORY = b"FDIR"
    FOOTER = b"FEND"


class Kind(enum.IntEnum):
    """What a record or a row of the index says of its range of the disk.

    The last two are in the index of a salvaged file alone, and no record goes with them: content
    that is lost, and ranges of which nothing tells whether the delta held them.
    """

    DATA = 1
    ZERO = 2
    LOST = 3
    UNCERTAIN = 4


INDEX_ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u8"),
        ("position", "<u8"),
        ("frame_length", "<u4"),
        ("kind", "<u4"),
    ]
)
"""A row of the index: the range on the disk, where its RECORD frame starts, its zstd frame."""


def directory_row(algorithm: HashAlgorithm) -> np.dtype[np.void]:
    """A row of the directory: which page stands where, what it spans, and its hash."""
    return _directory_row(algorithm.size)


@functools.cache
def _directory_row(hash_size: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("tag", "S4"),
            ("level", "<u4"),
            ("count", "<u8"),
            ("first", "<u8"),
            ("last", "<u8"),
            ("position", "<u8"),
            ("length", "<u8"),
            ("hash", f"V{hash_size}"),
        ]
    )


def seal(tag: Tag, body: bytes, algorithm: HashAlgorithm) -> bytes:
    """A whole frame: envelope, body, own hash."""
    length = len(tag) + len(body) + algorithm.size
    frame = ENVELOPE.pack(SKIPPABLE_MAGIC, length, tag) + body
    return frame + algorithm.digest(frame)


def unseal(frame: bytes, tag: Tag, algorithm: HashAlgorithm, where: object) -> memoryview:
    """The body of a frame whose tag, length and own hash are right.

    Raises:
        DeltaError: they are not.
    """
    least = ENVELOPE.size + algorithm.size
    if len(frame) < least:
        raise DeltaError(f"cut inside a {tag.name} frame", where=where)
    magic, length, found = ENVELOPE.unpack_from(frame)
    if magic != SKIPPABLE_MAGIC or found != tag or length + 8 != len(frame):
        raise DeltaError(f"no {tag.name} frame where one must be", where=where)
    view = memoryview(frame)
    if algorithm.digest(view[: -algorithm.size]) != own_hash(frame, algorithm):
        raise DeltaError(f"a {tag.name} frame does not match its hash", where=where)
    return view[ENVELOPE.size : -algorithm.size]


def own_hash(frame: bytes | memoryview, algorithm: HashAlgorithm) -> bytes:
    """The hash that ends a frame."""
    return bytes(frame[-algorithm.size :])
