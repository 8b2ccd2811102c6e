"""Read objects by large blocks ahead of whoever goes through them from front to back.

A request costs its way to the server and back, whatever it brings. What is read in order is asked
for by few requests, several on their way at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from fleece.cache import Cache

BLOCK = 8 << 20
AT_ONCE = 8
"""Blocks that are read at once, of all objects together."""
_HELD = 12
"""Blocks that are kept, those under way among them: 96 MiB. Who waits for one holds it, too."""
_NEAR = 8 << 20
"""Bytes between two reads that still follow one another: workers read side by side."""

_FIRST = 4
"""Blocks that are read at once of an object that is read in order: two can be so side by side."""
_ALONE = 2
"""Reads near one another that do not make a run yet."""
_PLACES = 4
"""Places at which an object is read by turns: records, and the pages of index and tree."""

WINDOW = 1 << 20
"""Bytes that are asked for at once where short reads follow one another."""
_WINDOWS = 16 << 20
"""Bytes of such that are kept, of all objects together."""
_GAP = 128 << 10
"""Bytes between two short reads that still do: of what is fetched for them, so much is not used."""
_SHORT_PLACES = 8
"""Places at which short reads go on: workers take them by batches."""


class Ahead:
    """Blocks of objects that are being read, for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._users = 0
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._windows: Cache[bytes] = Cache(_WINDOWS, len)

    def join(self) -> None:
        """Somebody reads an object in order; `leave` ends that."""
        with self._lock:
            self._users += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AT_ONCE, "fleece-s3-ahead")

    def leave(self) -> None:
        """The last one to leave ends the threads."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            pool, self._pool = self._pool, None
            self._blocks.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def has(self, key: str, numbers: Iterable[int]) -> bool:
        """Whether blocks of an object are there, or on their way."""
        with self._lock:
            return all((key, number) in self._blocks for number in numbers)

    def get(
        self, key: str, number: int, more: Iterable[int], read: Callable[[int], bytes]
    ) -> Future[bytes]:
        """A block of an object.

        Args:
            key: of the object.
            number: of the block.
            more: blocks that are wanted soon.
            read: reads one by its number.
        """
        with self._lock:
            assert self._pool is not None
            wanted = self._wanted(key, number, read, self._pool)
            for each in more:
                self._wanted(key, each, read, self._pool)
            while len(self._blocks) > _HELD:
                self._blocks.popitem(last=False)
            return wanted

    def window(self, of: Hashable, number: int, read: Callable[[int], bytes]) -> bytes:
        """A window of an object, read at once by whoever wants some of it first.

        Args:
            of: tells the object, and its content, from all others.
            number: of the window.
            read: reads one by its number.
        """
        return self._windows.get((of, number), lambda: read(number))

    def _wanted(
        self, key: str, number: int, read: Callable[[int], bytes], pool: ThreadPoolExecutor
    ) -> Future[bytes]:
        found = self._blocks.get((key, number))
        if found is None or found.cancelled() or (found.done() and found.exception()):
            found = self._blocks[key, number] = pool.submit(read, number)
        self._blocks.move_to_end((key, number))
        return found


class Neighbours:
    """Where short reads of an object were, for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[int] = []

    def near(self, position: int, length: int) -> bool:
        """Note a short read; gives whether it is near one of the last."""
        with self._lock:
            found = next((end for end in self._ends if abs(position - end) <= _GAP), None)
            if found is not None:
                self._ends.remove(found)
            self._ends.append(position + length)
            del self._ends[:-_SHORT_PLACES]
            return found is not None


class Runs:
    """How an object is read: here and there, or in order, at several places by turns.

    Args:
        length: of the object.
    """

    def __init__(self, length: int) -> None:
        self._last = -(-length // BLOCK)
        self._lock = threading.Lock()
        self._places: list[tuple[int, int]] = []

    def expect(self, position: int) -> range:
        """What is to be read at once, when all from a position on is read in order."""
        with self._lock:
            self._places.append((position, _ALONE + AT_ONCE))
        first = position // BLOCK
        return range(first, min(self._last, first + _FIRST))

    def more(self, position: int, length: int) -> range | None:
        """What is to be read ahead of a read; None: it stands alone.

        The first reads of what may be a run stand alone. Then each has one more block read ahead.
        """
        with self._lock:
            count = 0
            for place in self._places:
                if abs(place[0] - position) <= _NEAR:
                    count = place[1] + 1
                    self._places.remove(place)
                    break
            self._places.append((position + length, count))
            del self._places[:-_PLACES]
        if count <= _ALONE:
            return None
        first = (position + length - 1) // BLOCK + 1
        return range(first, min(self._last, first + min(AT_ONCE, count - _ALONE - 1)))
