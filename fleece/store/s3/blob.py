"""An object of a bucket that is open for reading (`fleece.delta.blob.Blob`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from fleece.errors import DeltaError, StoreError
from fleece.store.errors import Gone
from fleece.store.s3.ahead import BLOCK, WINDOW, Ahead, Neighbours, Runs
from fleece.store.s3.cache import Ranges
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.problems import Changed
from fleece.store.s3.pages import PageMemory, Pages

HEAD, TAIL = 4 << 10, 12 << 10
"""Bytes at the start and at the end of a delta that are read at once: what opens most of them."""

_SMALL = 64 << 10
_START, _STARTS = 1 << 10, 1 << 16
"""Bytes that are kept of the start of a range, and of how many. A record's own words are there:
who reads a whole delta looks at all of them once more."""

_Block: TypeAlias = tuple[int, "Future[bytes]"]
"""Where a block begins, and its bytes to come."""


@dataclass(frozen=True)
class Place:
    """Where an object is.

    Attributes:
        bucket: in which.
        key: in the bucket.
        name: for messages.
        length: in bytes.
        etag: of the object that is meant: if another has its place by now, that is an error.
    """

    bucket: Bucket
    key: str
    name: str
    length: int
    etag: str

    def read(self, start: int, length: int) -> bytes:
        """A range.

        Raises:
            Gone: it is not there any more, or not the same.
        """
        try:
            return self.bucket.get(self.key, start, length, self.etag).data
        except Changed as error:
            raise Gone(error.what, where=error.where) from error


def read_edges(place: Place) -> Ranges:
    """Read an object's ends, in one request if it is short.

    Raises:
        Gone: it is not there any more, or not the same.
    """
    if place.length <= HEAD + TAIL:
        return ((0, place.read(0, place.length)),) if place.length else ()
    start = place.length - TAIL
    return (0, place.read(0, HEAD)), (start, place.read(start, TAIL))


class ObjectBlob:
    """An object, open for reading by any number of threads; nothing is held open for it.

    Args:
        place: where it is.
        known: bytes of it that need not be read.
        ahead: holds what is read in order.
        memory: of the pages of deltas.
        keep: is told at the end which of what is known was used; None: nobody wants to know.
        own: this process has made it: what is known of its pages is remembered.

    Attributes:
        name, length: the same.
    """

    def __init__(
        self,
        place: Place,
        known: Ranges,
        ahead: Ahead,
        memory: PageMemory,
        keep: Callable[[Ranges], None] | None = None,
        own: bool = False,
    ) -> None:
        self.name, self.length = place.name, place.length
        self._place = place
        self._known, self._keep = known, keep
        self._used: dict[int, bytes] = {}
        self._memory, self._own = memory, own
        self._pages: Pages | None = None
        self._ahead, self._runs = ahead, Runs(place.length)
        self._lock = threading.Lock()
        self._joined = False
        self._starts: dict[int, bytes] = {}
        self._near = Neighbours()

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        if position < 0 or position + length > self.length:
            raise DeltaError("the object is cut", where=self.name)
        for start, data in self._known:
            if start <= position and position + length <= start + len(data):
                part = data[position - start : position - start + length]
                if self._keep is not None and len(part) >= len(self._used.get(position, b"")):
                    self._used[position] = part
                return part
        if not length:
            return b""
        if self._pages is not None and not self._joined:
            page = self._pages.get(position, length, self._read)
            if page is not None:
                return page
        if length < _SMALL:
            return self._small(position, length)
        more = self._runs.more(position, length)
        blocks = self._blocks(position, length, more)
        data = self._read(position, length) if blocks is None else _cut(blocks, position, length)
        self._keep_start(position, data)
        return data

    def _small(self, position: int, length: int) -> bytes:
        """A short range: many of them in order make no run, they are little of the object.

        Those near one another are cut out of windows, so that not each is asked for.
        """
        with self._lock:
            start = self._starts.get(position, b"")
        if length <= len(start):
            return start[:length]
        blocks = self._blocks(position, length, None)
        near = self._near.near(position, length)
        if blocks is not None:
            data = _cut(blocks, position, length)
        elif near:
            data = self._of_windows(position, length)
        else:
            data = self._read(position, length)
        if length > _START:
            self._keep_start(position, data)
        return data

    def _of_windows(self, position: int, length: int) -> bytes:
        numbers = range(position // WINDOW, (position + length - 1) // WINDOW + 1)
        place = self._place
        same = place.key, place.etag
        held = [self._ahead.window(same, number, self._window) for number in numbers]
        at = position - numbers[0] * WINDOW
        return b"".join(held)[at : at + length]

    def _window(self, number: int) -> bytes:
        start = number * WINDOW
        return self._read(start, min(WINDOW, self.length - start))

    def _keep_start(self, position: int, data: bytes) -> None:
        with self._lock:
            if len(self._starts) < _STARTS:
                self._starts[position] = data[:_START]

    def data_from(self, position: int) -> int:
        """The position itself: objects have no holes."""
        return min(position, self.length)

    def in_order(self, position: int) -> None:
        """Read from there on at once."""
        with self._lock:
            if not self._joined:
                self._joined = True
                self._ahead.join()
        first, *more = self._runs.expect(position) or (0,)
        self._ahead.get(self._place.key, first, more, self._block)

    def pages_at(self, places: Sequence[tuple[int, int]]) -> None:
        """Remember pages that are at these places: unless all is read in order."""
        place = self._place
        self._pages = Pages((place.key, place.etag, place.length), places, self._memory)
        if self._own:
            self._pages.keep(self._known)

    def forget_pages(self) -> bool:
        """Forget what is remembered of them."""
        return self._pages is not None and self._pages.forget()

    def close(self) -> None:
        """End what is read ahead."""
        with self._lock:
            joined, self._joined = self._joined, False
        if joined:
            self._ahead.leave()
        keep, self._keep = self._keep, None
        if keep is not None:
            keep(_joined(sorted(self._used.items())))

    def _blocks(self, position: int, length: int, more: range | None) -> list[_Block] | None:
        """The blocks that a range lies in; None: they are not there, and need not be read."""
        numbers = range(position // BLOCK, (position + length - 1) // BLOCK + 1)
        with self._lock:
            if not self._joined:
                if more is None:
                    return None
                self._joined = True
                self._ahead.join()
        if more is None and not self._ahead.has(self._place.key, numbers):
            return None
        held = [
            self._ahead.get(self._place.key, each, more or range(0), self._block)
            for each in numbers
        ]
        return [(number * BLOCK, block) for number, block in zip(numbers, held, strict=True)]

    def _block(self, number: int) -> bytes:
        start = number * BLOCK
        return self._read(start, min(BLOCK, self.length - start))

    def _read(self, position: int, length: int) -> bytes:
        try:
            data = self._place.read(position, length)
        except Gone as error:
            raise StoreError(
                "was replaced or removed while it was read",
                where=self.name,
                hint="a prune or a merge does that; run it again",
            ) from error
        if len(data) != length:
            raise DeltaError("the object is cut", where=self.name)
        return data


def _joined(ranges: Sequence[tuple[int, bytes]]) -> Ranges:
    """Ranges in order, those in one that follow one another."""
    found: list[tuple[int, bytes]] = []
    for start, data in ranges:
        if found and found[-1][0] + len(found[-1][1]) == start:
            start, data = found[-1][0], found.pop()[1] + data
        found.append((start, data))
    return tuple(found)


def _cut(blocks: Sequence[_Block], position: int, length: int) -> bytes:
    """A range out of the blocks that it lies in, when they are there."""
    end = position + length
    parts = [
        memoryview(block.result())[max(0, position - start) : end - start]
        for start, block in blocks
    ]
    return b"".join(parts)
