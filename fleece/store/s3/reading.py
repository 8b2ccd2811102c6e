"""Open the deltas of a store in a bucket; those that a listing named, many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from fleece.store.errors import Gone
from fleece.store.s3.ahead import Ahead
from fleece.store.s3.blob import ObjectBlob, Place, read_edges
from fleece.store.s3.cache import Ranges
from fleece.store.s3.client.answers import Listed
from fleece.store.s3.ledger import AT_ONCE, Ledger, identity
from fleece.store.s3.pages import PageMemory
from fleece.store.s3.upload import Upload

_AHEAD = 8 * AT_ONCE
"""Deltas of a listing whose ends are read before they are opened."""


class Reading:
    """What opens objects, with as few requests as can be.

    Args:
        ledger: of the store.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._blocks = Ahead()
        self._pages = PageMemory(ledger.cache)
        self._coming: deque[str] = deque()
        self._edges: dict[str, Ranges] = {}

    def made(self, key: str, upload: Upload) -> None:
        """Know of an object what its upload tells."""
        if upload.etag:
            item = Listed(key, upload.length, upload.etag, datetime.now(UTC))
            self._ledger.items[key] = item

    def expect(self, keys: Iterable[str]) -> None:
        """Know what is opened next, in this order: all that was listed."""
        self._coming = deque(keys)
        self._edges = {}

    def open(self, key: str, *, own: bool = False) -> ObjectBlob:
        """An object.

        Args:
            key: of it, below the prefix.
            own: this process has made it.

        Raises:
            Gone: it is not there.
        """
        ledger = self._ledger
        item = ledger.items.get(key)
        if item is None:
            head = ledger.bucket.head(ledger.key(key))
            item = Listed(key, head.length, head.etag, head.modified)
        known = ledger.cache.get(identity(item))
        found = known or self._ahead(key) or read_edges(self._place(item))

        def keep(used: Ranges) -> None:
            if known is None:
                ledger.cache.put(identity(item), used)
            if not self._coming and not self._edges:
                ledger.cache.keep()

        return ObjectBlob(self._place(item), found, self._blocks, self._pages, keep, own)

    def forget(self, key: str) -> bool:
        """Forget what this host remembers of an object; gives whether that was anything."""
        item = self._ledger.items.get(key)
        return item is not None and self._ledger.cache.forget(identity(item))

    def _ahead(self, key: str) -> Ranges | None:
        """The ends of an object that comes next, which are read with those of others."""
        if key not in self._edges:
            self._edges = {}
            while self._coming and self._coming[0] != key and self._is_known(self._coming[0]):
                self._coming.popleft()
            if not self._coming or self._coming[0] != key:
                return None
            self._read_ahead()
        return self._edges.pop(key, None)

    def _read_ahead(self) -> None:
        wanted: list[Listed] = []
        while self._coming and len(wanted) < _AHEAD:
            key = self._coming.popleft()
            if not self._is_known(key) and key in self._ledger.items:
                wanted.append(self._ledger.items[key])
        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(wanted)))) as pool:
            for item, edges in zip(wanted, pool.map(self._tried, wanted), strict=True):
                if edges is not None:
                    self._edges[item.key] = edges

    def _is_known(self, key: str) -> bool:
        item = self._ledger.items.get(key)
        return item is not None and self._ledger.cache.get(identity(item)) is not None

    def _tried(self, item: Listed) -> Ranges | None:
        try:
            return read_edges(self._place(item))
        except Gone:
            return None

    def _place(self, item: Listed) -> Place:
        ledger = self._ledger
        name = ledger.name(item.key)
        return Place(ledger.bucket, ledger.key(item.key), name, item.length, item.etag)
