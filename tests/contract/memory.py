"""A store in memory, for one process: nothing of it is a file."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from fleece.delta.blob import Blob
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.hashing import Buffer
from fleece.store.backend import Batch, Draft, Listing, Patience, Site
from fleece.store.errors import Gone
from fleece.store.names import is_mark

_MARKER = "fleece-store.json"


class Held:
    """A blob."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self.length = name, len(data)
        self._data = data

    def read_at(self, position: int, length: int) -> bytes:
        if position + length > self.length:
            raise DeltaError("the object is cut", where=self.name)
        return self._data[position : position + length]

    def data_from(self, position: int) -> int:
        return position

    def close(self) -> None:
        pass


class _Sink:
    def __init__(self, start: bytes = b"") -> None:
        self.data = bytearray(start)
        self.sealed = False
        self._lock = threading.Lock()

    def write(self, data: Buffer, /) -> int:
        with self._lock:
            if self.sealed:
                raise StoreError("is written no more")
            self.data += data
        return memoryview(data).nbytes

    def sync(self) -> None:
        pass


class _Batch:
    def __init__(self, backend: MemoryBackend, guest: str, name: str) -> None:
        self.name, self.where = name, backend.name(f"{guest}/unfinished {name}")
        self._backend, self._guest = backend, guest
        self._sinks: dict[str, _Sink] = {}

    def names(self) -> list[str]:
        return [*self._sinks]

    def open(self, name: str) -> Blob:
        if name not in self._sinks:
            raise DeltaError("is not there", where=f"{self.where}/{name}")
        return Held(bytes(self._sinks[name].data), f"{self.where}/{name}")

    def create(self, name: str, most: int | None = None) -> _Sink:
        if name in self._sinks:
            raise StoreError("exists", where=f"{self.where}/{name}")
        return self._sinks.setdefault(name, _Sink())

    def reopen(self, name: str, keep: int) -> _Sink:
        self._sinks[name] = _Sink(bytes(self._sinks[name].data[:keep]))
        return self._sinks[name]

    def seal(self) -> None:
        for sink in self._sinks.values():
            sink.sealed = True

    def commit(self, name: str) -> None:
        prefix = f"{self._guest}/{name}"
        if self._backend.is_point(prefix):
            raise StoreError("exists", where=self._backend.name(prefix))
        for one, sink in self._sinks.items():
            self._backend.set(f"{prefix}/{one}", bytes(sink.data))
        self.discard()

    def discard(self) -> None:
        self._backend.batches.pop((self._guest, self.name), None)


class _Draft:
    def __init__(self, backend: MemoryBackend, key: str, *, new: bool) -> None:
        self.key, self.sink = key, _Sink()
        self._backend, self._new = backend, new
        backend.drafts[key] = self

    def seal(self) -> None:
        self.sink.sealed = True

    def open(self) -> Blob:
        return Held(bytes(self.sink.data), self._backend.name(self.key))

    def place(self, key: str) -> None:
        if self._new and self._backend.has(key):
            raise StoreError("exists", where=self._backend.name(key))
        self._backend.set(key, bytes(self.sink.data))
        self.discard()

    def discard(self) -> None:
        self._backend.drafts.pop(self.key, None)


class MemoryBackend:
    """Objects in a dict."""

    begins_ahead = True

    def __init__(self) -> None:
        self.where = "memory"
        self.batches: dict[tuple[str, str], _Batch] = {}
        self.drafts: dict[str, _Draft] = {}
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._numbers = itertools.count()

    @property
    def address(self) -> str:
        return "memory:"

    def is_point(self, prefix: str) -> bool:
        return any(key.startswith(f"{prefix}/") for key in self._objects)

    def set(self, key: str, data: bytes) -> None:
        self._objects[key] = data, str(next(self._numbers))

    def _found(self, key: str) -> tuple[bytes, str]:
        if key not in self._objects:
            raise Gone("is not there", where=self.name(key))
        return self._objects[key]

    @property
    def near(self) -> bool:
        return True

    def sharing(self, mode: int) -> MemoryBackend:
        return self

    def create(self, marker: bytes, site: Site | None = None) -> None:
        if site not in (None, Site()):
            raise UsageError("is in memory", where=self.where)
        if self._objects:
            raise StoreError("is a store already", where=self.where)
        self.set(_MARKER, marker)

    def check(self) -> None:
        if not self._objects:
            raise StoreError("there is no store here", where=self.where)

    def writable(self, key: str = "") -> bool:
        return True

    def room(self) -> None:
        return None

    def name(self, key: str) -> str:
        return f"{self.where}: {key}"

    def listing(self, guest: str | None = None) -> Listing:
        keys = [key for key in self._objects if guest in (None, key.partition("/")[0])]
        deltas = [key for key in keys if key.endswith(".fleece")]
        return Listing(deltas, marks=[key for key in keys if is_mark(key)])

    def open(self, key: str) -> Blob:
        if key not in self._objects:
            raise DeltaError("is not there", where=self.name(key))
        return Held(self._objects[key][0], self.name(key))

    def forget(self, key: str) -> bool:
        return False

    def has(self, key: str) -> bool:
        return key in self._objects or key in self.drafts

    def stamp(self, key: str) -> str:
        return self._found(key)[1]

    def get(self, key: str, most: int) -> bytes:
        data = self._found(key)[0]
        if len(data) > most:
            raise StoreError(f"is longer than {most} bytes", where=self.name(key))
        return data

    def put(self, key: str, data: bytes) -> None:
        point = key.rpartition("/")[0]
        if point and not self.is_point(point):
            raise Gone("its point is not there", where=self.name(key))
        self.set(key, data)

    def delete(self, key: str) -> None:
        self._objects.pop(key, None)

    def sweep(self, key: str) -> None:
        pass

    @contextlib.contextmanager
    def lock(self, guest: str, name: str, patience: Patience | None = None) -> Iterator[None]:
        patience = patience or Patience()
        limit = time.monotonic() + patience.seconds
        while not self._locks[guest].acquire(blocking=False):
            patience.cancel.check()
            if time.monotonic() >= limit:
                raise StoreError(f"another backup of {name} is running", where=self.where)
            time.sleep(0.01)
        try:
            yield
        finally:
            self._locks[guest].release()

    def batch(self, guest: str, name: str) -> Batch:
        if (guest, name) in self.batches:
            raise StoreError("exists", where=self.name(f"{guest}/{name}"))
        return self.batches.setdefault((guest, name), _Batch(self, guest, name))

    def left(self, guest: str) -> list[Batch]:
        return [batch for (whose, _), batch in self.batches.items() if whose == guest]

    def replace(self, key: str) -> Draft:
        self._found(key)
        return _Draft(self, f"{key} (new {next(self._numbers)})", new=False)

    @contextlib.contextmanager
    def spool(self) -> Iterator[Draft]:
        draft = _Draft(self, f"incoming {secrets.token_hex(8)}", new=True)
        try:
            yield draft
        finally:
            draft.discard()

    def drop(self, point: str) -> Sequence[str]:
        if not self.is_point(point):
            raise Gone("is not there", where=self.name(point))
        for key in [key for key in self._objects if key.startswith(f"{point}/")]:
            del self._objects[key]
        return []

    def tidy(self, points: Sequence[str]) -> Sequence[str]:
        mine = [key for key in self.drafts if key.rpartition("/")[0] in points]
        for key in mine:
            del self.drafts[key]
        return [self.name(key) for key in mine]
