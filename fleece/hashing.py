"""The hash algorithms that a chain can use. A chain has one, named in every header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
        keyed: whether the digest depends on a key.
    """

    name: str
    code: int
    size: int
    digest: Callable[[Buffer], bytes] = field(compare=False)
    keyed: bool = False


XXH3_128 = HashAlgorithm("xxh3-128", 1, 16, xxhash.xxh3_128_digest)


def _blake3_digest(data: Buffer) -> bytes:
    from blake3 import blake3

    return blake3(data).digest()


BLAKE3 = HashAlgorithm("blake3", 2, 32, _blake3_digest)


def keyed_blake3(key: bytes) -> HashAlgorithm:
    """BLAKE3 in its keyed mode: only who has the 32 bytes of the key can make or check a hash."""
    from blake3 import blake3

    def digest(data: Buffer) -> bytes:
        return blake3(data, key=key).digest()

    return HashAlgorithm("blake3-keyed", KEYED_CODE, 32, digest, keyed=True)


KEYED_CODE = 3
"""The code of `keyed_blake3`."""

ALGORITHMS = (XXH3_128, BLAKE3)
"""All that need no key."""


def by_code(code: int, key: bytes | None = None) -> HashAlgorithm | None:
    """The algorithm of a header's code, or None if this version does not know it.

    Args:
        code: the number.
        key: 32 bytes, for the keyed one, which is unknown without.
    """
    if code == KEYED_CODE and key is not None:
        return keyed_blake3(key)
    return next((known for known in ALGORITHMS if known.code == code), None)


def by_name(name: str) -> HashAlgorithm | None:
    """The unkeyed algorithm of a name, or None."""
    return next((known for known in ALGORITHMS if known.name == name), None)
