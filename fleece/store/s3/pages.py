"""The pages of deltas that were read: in memory, and on this host for the next run.

A backup looks into the pages of every delta that its disk is made up of. They lie together at the
end of a delta and never change. So those of a short delta are read by one request, and each but
once by each host. Nothing is decided by what is remembered: a page must match its delta's own hash.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from fleece.cache import Cache
from fleece.store.s3.cache import Cache as HostCache
from fleece.store.s3.cache import Identity, Ranges

_TOGETHER = 1 << 20
"""Bytes of pages that are read at once; one that is longer is read alone."""
_HELD = 32 << 20
"""Bytes that are held in memory, of all deltas together."""

Read = Callable[[int, int], bytes]
"""Reads so many bytes from a position on."""


class PageMemory:
    """What is remembered of the pages of a store's deltas, for any number of threads.

    Args:
        host: what this host remembers.
    """

    def __init__(self, host: HostCache) -> None:
        self._host = host
        self._held: Cache[bytes] = Cache(_HELD, len)

    def get(self, identity: Identity, start: int, length: int, read: Read) -> bytes:
        """A range of an object."""

        def made() -> bytes:
            known = self._host.page(identity, start)
            if known is not None and len(known) == length:
                return known
            data = read(start, length)
            self._host.put_page(identity, start, data)
            return data

        return self._held.get((identity, start), made)

    def put(self, identity: Identity, start: int, data: bytes) -> None:
        """Remember a range of an object that was read."""
        self._host.put_page(identity, start, data)

    def forget(self, identity: Identity) -> bool:
        """Forget an object's pages; gives whether this host remembered any."""
        self._held = Cache(_HELD, len)
        return self._host.forget_pages(identity)


class Pages:
    """The pages of one delta.

    Args:
        identity: of the object.
        places: position and length of each, in their order in the object.
        memory: of the store.
    """

    def __init__(
        self, identity: Identity, places: Sequence[tuple[int, int]], memory: PageMemory
    ) -> None:
        self._identity, self._memory = identity, memory
        self._groups: list[tuple[int, int]] = []
        for position, length in places:
            start, end = self._groups[-1] if self._groups else (0, -1)
            if end == position and position + length - start <= _TOGETHER:
                self._groups[-1] = start, position + length
            else:
                self._groups.append((position, position + length))
        self._starts = [start for start, _ in self._groups]

    def get(self, position: int, length: int, read: Read) -> bytes | None:
        """A range of the object; None: it is of no page."""
        number = bisect_right(self._starts, position) - 1
        if number < 0 or position + length > self._groups[number][1]:
            return None
        start, end = self._groups[number]
        data = self._memory.get(self._identity, start, end - start, read)
        return data[position - start : position - start + length]

    def keep(self, known: Ranges) -> None:
        """Remember what there is of them in some ranges that were read."""
        for start, end in self._groups:
            for at, data in known:
                if at <= start and end <= at + len(data):
                    self._memory.put(self._identity, start, data[start - at : end - at])

    def forget(self) -> bool:
        """Forget what was remembered; gives whether that was anything."""
        return self._memory.forget(self._identity)
