"""Turn read data into what is stored or hashed: runs of leaves, zeros told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fleece.hashing import Buffer
from fleece.tree import Geometry


class Run(NamedTuple):
    """Consecutive leaves that are all data or all zero. A disk may have millions.

    Attributes:
        offset, length: in bytes; the last leaf of the disk may be short.
        hashes: of its leaves, joined; None: it is zeros.
    """

    offset: int
    length: int
    hashes: bytes | None


class LeafHasher:
    """Cuts buffers into runs. Holds no state between calls; share it between threads."""

    def __init__(self, geometry: Geometry) -> None:
        self._size = geometry.leaf_size
        self._digest = geometry.algorithm.digest
        self._blank = bytes(geometry.leaf_size)

    def runs(self, offset: int, data: Buffer) -> Iterator[Run]:
        """The runs of a buffer that begins at a leaf and ends at one or at the disk's end."""
        view = memoryview(data)
        size, blank, digest = self._size, self._blank, self._digest
        start = 0
        hashes: list[bytes] = []
        zero = False
        for at in range(0, len(view), size):
            leaf = view[at : at + size]
            # The fastest test there is: memcmp against a constant, ending at the first difference.
            is_zero = blank.startswith(leaf)
            if at > start and is_zero != zero:
                yield Run(offset + start, at - start, None if zero else b"".join(hashes))
                start, hashes = at, []
            zero = is_zero
            if not is_zero:
                whole = leaf if len(leaf) == size else bytes(leaf).ljust(size, b"\0")
                hashes.append(digest(whole))
        if len(view) > start:
            end = len(view) - start
            yield Run(offset + start, end, None if zero else b"".join(hashes))
