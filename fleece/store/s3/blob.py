"""An object of a bucket that is open for reading (`fleece.delta.blob.Blob`)."""

from __future__ import annotations

import threading

from fleece.errors import DeltaError, StoreError
from fleece.store.errors import Gone
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.problems import Changed

EDGE = 16 << 10
"""Bytes at the start and at the end of a delta that are read at once: what opening it needs."""


class Edges:
    """The first and the last bytes of an object.

    Attributes:
        head, tail: they.
    """

    def __init__(self, head: bytes, tail: bytes) -> None:
        self.head, self.tail = head, tail


def read_edges(bucket: Bucket, key: str, length: int, etag: str) -> Edges:
    """Read both; of a short object, in one request."""
    if length <= 2 * EDGE:
        return Edges(bucket.get(key, etag=etag).data, b"")
    head = bucket.get(key, 0, EDGE, etag=etag).data
    return Edges(head, bucket.get(key, length - EDGE, EDGE, etag=etag).data)


class ObjectBlob:
    """An object, open for reading by any number of threads; nothing is held open for it.

    Args:
        bucket: where.
        key: in the bucket.
        name: for messages.
        length: in bytes.
        etag: of the object that is meant: if another has its place by now, that is an error.
        edges: what is known of it; None: nothing is.

    Attributes:
        name, length: the same.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        name: str,
        length: int,
        etag: str,
        edges: Edges | None = None,
    ) -> None:
        self.name, self.length = name, length
        self._bucket, self._key, self._etag = bucket, key, etag
        self._edges = edges
        self._lock = threading.Lock()

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        end = position + length
        if end > self.length or position < 0:
            raise DeltaError("the object is cut", where=self.name)
        if end <= EDGE or position >= self.length - EDGE:
            edges = self._known()
            if end <= len(edges.head):
                return edges.head[position:end]
            start = self.length - len(edges.tail)
            if position >= start:
                return edges.tail[position - start : end - start]
        return self._read(position, length)

    def data_from(self, position: int) -> int:
        """The position itself: objects have no holes."""
        return min(position, self.length)

    def close(self) -> None:
        """Nothing is open."""

    def _known(self) -> Edges:
        with self._lock:
            if self._edges is None:
                try:
                    self._edges = read_edges(self._bucket, self._key, self.length, self._etag)
                except (Gone, Changed) as error:
                    raise self._replaced() from error
            return self._edges

    def _read(self, position: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            data = self._bucket.get(self._key, position, length, self._etag).data
        except (Gone, Changed) as error:
            raise self._replaced() from error
        if len(data) != length:
            raise DeltaError("the object is cut", where=self.name)
        return data

    def _replaced(self) -> StoreError:
        return StoreError(
            "was replaced or removed while it was read",
            where=self.name,
            hint="a prune or a merge does that; run it again",
        )
