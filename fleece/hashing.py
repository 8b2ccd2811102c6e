"""The hash algorithms that a chain can use. A chain has one, named in every header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import xxhash

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True)
class HashAlgorithm:
    """A hash function as the delta format names it.

    Attributes:
        name: the name in the header's JSON.
        code: the number in the header's fixed part.
        size: the digest's length in bytes.
        digest: from any buffer to `size` bytes.
    """

    name: str
    code: int
    size: int
    digest: Callable[[Buffer], bytes]


XXH3_128 = HashAlgorithm("xxh3-128", 1, 16, xxhash.xxh3_128_digest)

ALGORITHMS = (XXH3_128,)
"""All that this version knows."""


def by_code(code: int) -> HashAlgorithm | None:
    """The algorithm of a header's code, or None if this version does not know it."""
    return next((known for known in ALGORITHMS if known.code == code), None)
