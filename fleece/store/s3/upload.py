"""Write an object: in parts while it grows, several on their way at once, or whole if it is short.

Nobody sees it before `finish`. Memory is bounded by the parts that are under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fleece.errors import StoreError
from fleece.hashing import Buffer
from fleece.store.s3.client.answers import Part
from fleece.store.s3.client.answers import Upload as Handle
from fleece.store.s3.client.bucket import Bucket

IN_FLIGHT = 4
"""Parts of one point that are sent at once."""

_LEAST = 8 << 20
_MOST = 4 << 30
_PARTS = 9000
"""S3 takes 10 000."""
_GROWS = 1000


def part_size(number: int, most: int | None) -> int:
    """Bytes of a part.

    Args:
        number: of it, from 1 on.
        most: bytes that the object can have; None: nobody knows. Then parts grow, so that 5 TiB
            fit; else all are alike, as some servers want it.
    """
    if most is not None and number <= _PARTS:
        return max(_LEAST, -(-most // _PARTS))
    return min(_MOST, _LEAST << (number - 1) // _GROWS)


class Crew:
    """The threads that send parts. `close` it.

    Args:
        count: how many.
    """

    def __init__(self, count: int = IN_FLIGHT) -> None:
        self._pool = ThreadPoolExecutor(count, "fleece-s3")
        self._free = threading.Semaphore(count)

    def send(self, work: Callable[[], None]) -> Future[None]:
        """Do it in a thread, as soon as one is free; waits until then."""
        self._free.acquire()
        try:
            sent = self._pool.submit(work)
        except BaseException:
            self._free.release()
            raise
        sent.add_done_callback(lambda _: self._free.release())
        return sent

    def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._pool.shutdown(cancel_futures=True)


class Upload:
    """An object that is being written (`fleece.store.backend.NewObject`).

    Args:
        bucket: where.
        key: in the bucket; nothing has it yet, and nobody else writes it.
        crew: sends the parts.
        most: bytes that it can have; None: nobody knows.

    Attributes:
        key: the same.
        length: bytes that were written.
        etag: of the object, when it is whole; empty: the server has not said.
    """

    def __init__(self, bucket: Bucket, key: str, crew: Crew, most: int | None = None) -> None:
        self.key = key
        self.length = 0
        self.etag = ""
        self._bucket, self._crew, self._most = bucket, crew, most
        self._lock = threading.Lock()
        self._held = bytearray()
        self._handle: Handle | None = None
        self._parts: list[Part] = []
        self._sent: list[Future[None]] = []
        self._count = 0
        self._size = part_size(1, most)
        self._ended = False

    def write(self, data: Buffer, /) -> int:
        """Take bytes; waits while too many are under way."""
        with self._lock:
            self._check()
            taken = memoryview(data).nbytes
            self._held += data
            self.length += taken
            while len(self._held) > self._size:
                self._part(self._size)
            return taken

    def sync(self) -> None:
        """Say what failed so far: nothing can be read of an object before it is whole."""
        with self._lock:
            self._check()

    def finish(self) -> None:
        """Make it whole; `etag` is known then."""
        with self._lock:
            if self._ended:
                return
            if self._handle is None:
                self.etag = self._bucket.put(self.key, bytes(self._held))
            else:
                self._part(len(self._held))
                for sent in self._sent:
                    sent.result()
                parts = sorted(self._parts, key=lambda part: part.number)
                self.etag = self._bucket.complete(self._handle, parts)
            self._ended = True
            self._held = bytearray()

    def abort(self, bucket: Bucket) -> None:
        """Give it up; nothing, if it is whole.

        Args:
            bucket: the same, for removing.
        """
        with self._lock:
            handle, self._handle = self._handle, None
            if self._ended or handle is None:
                return
            self._ended = True
            for sent in self._sent:
                sent.cancel()
            for sent in self._sent:
                if not sent.cancelled():
                    sent.exception()
            bucket.abort(handle)

    def _check(self) -> None:
        """Raise what a part failed by."""
        if self._ended:
            raise StoreError("is written no more", where=self.key)
        done = [sent for sent in self._sent if sent.done()]
        for sent in done:
            sent.result()
            self._sent.remove(sent)

    def _part(self, size: int) -> None:
        if self._handle is None:
            self._handle = self._bucket.begin(self.key)
        self._count += 1
        number, handle = self._count, self._handle
        data = bytes(memoryview(self._held)[:size])
        del self._held[:size]

        def send() -> None:
            etag = self._bucket.part(handle, number, data)
            self._parts.append(Part(number, etag, len(data)))

        self._sent.append(self._crew.send(send))
        self._size = part_size(number + 1, self._most)
