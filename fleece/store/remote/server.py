"""The serving side of the store protocol: does what is asked with one store, and nothing else.

It is for a store of the same machine, for somebody who came in over ssh. The keys of a store are
not needed and never sent. All names are checked here: who asks may be anybody's fleece.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fleece.cancel import CancelToken
from fleece.delta.blob import Blob
from fleece.errors import FleeceError, StoreError, bug
from fleece.store.backend import Backend, Batch, BeginsAhead, Draft, NewObject, Patience
from fleece.store.errors import store_error
from fleece.store.names import TAGS
from fleece.store.open import open_backend
from fleece.store.remote.wire import (
    GREETING,
    MAX_DATA,
    PAGE,
    Message,
    WireError,
    packed,
    received,
)

_THREADS = 16
_MOST_HANDLES = 8192
_TICK = 5.0
"""Seconds between two signs of life while something takes long."""

_LONGEST_WAIT = 60
_MODES = range(0o1000)


class _End(Exception):
    """The other side has gone."""


def serve_store(
    place: str,
    source: int,
    sink: int,
    *,
    append_only: bool = False,
    cancel: CancelToken | None = None,
) -> None:
    """Answer until the other side ends.

    Args:
        place: of the store, which the other side must name; there may be no store yet.
        source, sink: descriptors to read requests from and to write answers to.
        append_only: refuse whatever replaces or removes what is committed.
        cancel: ends it.

    Raises:
        StoreError: the other side does not speak the protocol.
    """
    served = _Served(open_backend(place), place, append_only=append_only)
    stream = _Stream(source, sink, cancel or CancelToken())
    stream.put(GREETING)
    try:
        with contextlib.closing(served), ThreadPoolExecutor(_THREADS, "fleece-serve") as pool:
            _answer_all(served, stream, pool)
    except _End:
        pass


def _answer_all(served: _Served, stream: _Stream, pool: ThreadPoolExecutor) -> None:
    busy: set[int] = set()  # the requests that are under way
    over = threading.Event()

    def answer(request: Message) -> None:
        try:
            stream.put(packed(served.answer(request)))
        except (_End, OSError):
            pass
        finally:
            busy.discard(id(request))

    def show_life() -> None:
        while not over.wait(_TICK):
            if busy:
                with contextlib.suppress(OSError):
                    stream.put(packed(Message({})))

    life = threading.Thread(target=show_life, daemon=True)
    life.start()
    try:
        while True:
            request = received(stream.take)
            if request.said.get("do") == "write":
                if (failed := served.write(request)) is not None:
                    stream.put(packed(failed))
                continue
            busy.add(id(request))
            if request.said.get("do") == "lock":  # it may wait
                threading.Thread(target=answer, args=(request,), daemon=True).start()
            else:
                pool.submit(answer, request)
    finally:
        served.gone.cancel()
        over.set()
        life.join()


class _Stream:
    """Both directions."""

    def __init__(self, source: int, sink: int, cancel: CancelToken) -> None:
        self._source, self._sink, self._cancel = source, sink, cancel
        self._lock = threading.Lock()

    def take(self, length: int) -> bytes:
        """Exactly so many bytes."""
        parts = []
        while length:
            self._cancel.wait(self._source, select.POLLIN)
            part = os.read(self._source, length)
            if not part:
                raise _End
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def put(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        with self._lock:
            while view:
                view = view[os.write(self._sink, view) :]


class _Served:
    """A store, and what of it the other side holds open.

    Attributes:
        gone: cancelled when the other side has gone.
    """

    def __init__(self, backend: Backend, path: str, *, append_only: bool) -> None:
        self.gone = CancelToken()
        self._path = path
        self._append_only = append_only
        self._backends = {0o600: backend.sharing(0o600)}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._handles: dict[int, object] = {}
        self._ends: dict[int, contextlib.ExitStack] = {}
        self._failed: set[int] = set()

    def close(self) -> None:
        """Let go of all that is held: locks, and what has no place."""
        for end in self._ends.values():
            with contextlib.suppress(FleeceError, OSError):
                end.close()

    def answer(self, request: Message) -> Message:
        """Do what is asked; gives the answer, be it an error."""
        number = request.said.get("id")
        try:
            do = getattr(self, f"_do_{request.text('do')}", None)
            if do is None:
                raise WireError("what is asked for is not known")
            result: Message = do(request)
            return Message(result.said | {"id": number}, result.data)
        except FleeceError as error:
            return _error(number, error)
        except OSError as error:
            return _error(number, store_error(error, self._path))
        except Exception as error:  # else nobody would be told
            return _error(number, bug(error))

    def write(self, request: Message) -> Message | None:
        """Write to a sink; the answer to a write is that there is none, but for the first error."""
        handle = request.number("handle")
        try:
            sink: NewObject = self._held(request, "handle", "write")
            view = memoryview(request.data)
            while view:
                taken = sink.write(view)
                if not taken:
                    raise StoreError("the sink takes no bytes")
                view = view[taken:]
        except FleeceError as error:
            if handle not in self._failed:
                self._failed.add(handle)
                return Message(_error(None, error).said | {"failed": handle})
        return None

    # ---- what is open --------------------------------------------------------------------------

    def _hold(self, thing: object, end: contextlib.ExitStack | None = None) -> int:
        """Give a thing a number; what ends with it is taken out of the stack."""
        with self._lock:
            if len(self._handles) >= _MOST_HANDLES:
                raise StoreError("too many objects are open at once")
            number = next(self._numbers)
            self._handles[number] = thing
            if end is not None:
                self._ends[number] = end.pop_all()
            return number

    def _held(self, request: Message, name: str, method: str) -> Any:
        found = self._handles.get(request.number(name))
        if not hasattr(found, method):
            raise WireError("no such object is open")
        return found

    def _drop(self, request: Message) -> contextlib.ExitStack | None:
        number = request.number("handle")
        with self._lock:
            self._handles.pop(number, None)
            return self._ends.pop(number, None)

    def _backend(self, request: Message) -> Backend:
        mode = request.number("mode")
        if mode not in _MODES:
            raise WireError("mode is none")
        with self._lock:
            if mode not in self._backends:
                self._backends[mode] = self._backends[0o600].sharing(mode)
            return self._backends[mode]

    def _only_added(self, what: str) -> None:
        if self._append_only:
            raise StoreError(
                f"is append-only from here: {what} is refused",
                where=self._path,
                hint="run it on the store's own host",
            )

    # ---- the place -----------------------------------------------------------------------------

    def _do_hello(self, request: Message) -> Message:
        asked = request.text("path")
        if os.path.normpath(asked) != os.path.normpath(self._path):
            raise StoreError(f"serves {self._path}, not {asked}")
        backend = self._backends[0o600]
        ahead = isinstance(backend, BeginsAhead) and backend.begins_ahead
        return Message({"append_only": self._append_only, "begins_ahead": ahead})

    def _do_create(self, request: Message) -> Message:
        self._backend(request).create(request.data)
        return Message({})

    def _do_check(self, request: Message) -> Message:
        self._backend(request).check()
        return Message({})

    def _do_writable(self, request: Message) -> Message:
        key = request.text("key")
        if key and self._append_only:
            return Message({"is": False})
        return Message({"is": self._backend(request).writable(_key(key) if key else "")})

    def _do_room(self, request: Message) -> Message:
        return Message({"room": self._backend(request).room()})

    def _do_list(self, request: Message) -> Message:
        guest = _name(request.text("guest")) if "guest" in request.said else None
        found = self._backend(request).listing(guest)
        lines = [("deltas", key) for key in found.deltas]
        lines += [("foreign", name) for name in found.foreign]
        lines += [("marks", key) for key in found.marks]
        return Message({"handle": self._hold(_Lines(lines))})

    def _do_lines(self, request: Message) -> Message:
        lines = self._held(request, "handle", "page").page()
        kinds: dict[str, list[str]] = {"deltas": [], "foreign": [], "marks": []}
        for kind, name in lines:
            kinds[kind].append(name)
        if not lines:
            self._drop(request)
        return Message({"more": bool(lines), **kinds})

    # ---- objects -------------------------------------------------------------------------------

    def _do_open(self, request: Message) -> Message:
        return self._opened(self._backend(request).open(_key(request.text("key"))))

    def _opened(self, blob: Blob) -> Message:
        with contextlib.ExitStack() as end:
            end.callback(blob.close)
            number = self._hold(blob, end)
        return Message({"handle": number, "length": blob.length})

    def _do_read(self, request: Message) -> Message:
        length = request.number("length")
        if length > MAX_DATA:
            raise WireError("length is too much")
        blob = self._held(request, "handle", "read_at")
        return Message({}, blob.read_at(request.number("position"), length))

    def _do_data_from(self, request: Message) -> Message:
        blob = self._held(request, "handle", "data_from")
        return Message({"position": blob.data_from(request.number("position"))})

    def _do_close(self, request: Message) -> Message:
        end = self._drop(request)
        if end is not None:
            end.close()
        return Message({})

    def _do_has(self, request: Message) -> Message:
        return Message({"is": self._backend(request).has(_key(request.text("key")))})

    def _do_stamp(self, request: Message) -> Message:
        return Message({"stamp": self._backend(request).stamp(_key(request.text("key")))})

    def _do_get(self, request: Message) -> Message:
        most = min(request.number("most"), MAX_DATA)
        return Message({}, self._backend(request).get(_key(request.text("key")), most))

    def _do_put(self, request: Message) -> Message:
        backend, key = self._backend(request), _key(request.text("key"))
        if self._append_only and key.endswith(TAGS):
            self._only_added("to change tags")  # prune keeps points by them
        if self._append_only and backend.has(key):
            self._only_added("to replace a note")
        backend.put(key, request.data)
        return Message({})

    def _do_delete(self, request: Message) -> Message:
        self._only_added("to delete a note")
        self._backend(request).delete(_key(request.text("key")))
        return Message({})

    def _do_sweep(self, request: Message) -> Message:
        if not self._append_only:
            self._backend(request).sweep(_key(request.text("key")))
        return Message({})

    # ---- locks and points ----------------------------------------------------------------------

    def _do_lock(self, request: Message) -> Message:
        patience = Patience(min(request.number("seconds"), _LONGEST_WAIT), self.gone)
        guest, name = _name(request.text("guest")), request.text("name")
        with contextlib.ExitStack() as end:
            end.enter_context(self._backend(request).lock(guest, name, patience))
            number = self._hold(guest, end)
        return Message({"handle": number})

    def _do_batch(self, request: Message) -> Message:
        guest, name = _name(request.text("guest")), _name(request.text("name"))
        return self._begun(self._backend(request).batch(guest, name))

    def _begun(self, batch: Batch) -> Message:
        return Message({"handle": self._hold(batch), "name": batch.name, "where": batch.where})

    def _do_left(self, request: Message) -> Message:
        left = self._backend(request).left(_name(request.text("guest")))
        return Message({"handle": self._hold(_Lines(left))})

    def _do_next_left(self, request: Message) -> Message:
        found = self._held(request, "handle", "page").page(1)
        if not found:
            self._drop(request)
            return Message({"more": False})
        return Message(self._begun(found[0]).said | {"more": True})

    def _do_names(self, request: Message) -> Message:
        return Message({"names": self._held(request, "handle", "names").names()})

    def _do_open_in(self, request: Message) -> Message:
        batch = self._held(request, "handle", "open")
        return self._opened(batch.open(_name(request.text("name"))))

    def _do_make(self, request: Message) -> Message:
        batch = self._held(request, "handle", "create")
        return Message({"handle": self._hold(batch.create(_name(request.text("name"))))})

    def _do_reopen(self, request: Message) -> Message:
        batch, keep = self._held(request, "handle", "reopen"), request.number("keep")
        return Message({"handle": self._hold(batch.reopen(_name(request.text("name")), keep))})

    def _do_sync(self, request: Message) -> Message:
        self._held(request, "handle", "sync").sync()
        return Message({})

    def _do_seal(self, request: Message) -> Message:
        self._held(request, "handle", "seal").seal()
        return Message({})

    def _do_commit(self, request: Message) -> Message:
        self._held(request, "handle", "commit").commit(_name(request.text("name")))
        return Message({})

    def _do_discard(self, request: Message) -> Message:
        self._held(request, "handle", "discard").discard()
        return Message({})

    # ---- drafts --------------------------------------------------------------------------------

    def _do_replace(self, request: Message) -> Message:
        self._only_added("to replace a delta")
        return self._drafted(self._backend(request).replace(_key(request.text("key"))))

    def _do_spool(self, request: Message) -> Message:
        with contextlib.ExitStack() as end:
            draft = end.enter_context(self._backend(request).spool())
            return self._drafted(draft, end)

    def _drafted(self, draft: Draft, end: contextlib.ExitStack | None = None) -> Message:
        number = self._hold(draft, end)
        return Message({"handle": number, "key": draft.key, "sink": self._hold(draft.sink)})

    def _do_open_draft(self, request: Message) -> Message:
        return self._opened(self._held(request, "handle", "place").open())

    def _do_place(self, request: Message) -> Message:
        self._held(request, "handle", "place").place(_key(request.text("key")))
        return Message({})

    # ---- what removes --------------------------------------------------------------------------

    def _do_drop(self, request: Message) -> Message:
        self._only_added("to drop a point")
        kept = self._backend(request).drop(_key(request.text("key")))
        return Message({"names": [*kept]})

    def _do_tidy(self, request: Message) -> Message:
        if self._append_only:
            return Message({"names": []})
        points = [_key(point) for point in request.names("points")]
        return Message({"names": [*self._backend(request).tidy(points)]})


class _Lines:
    """Things that are handed out some at a time."""

    def __init__(self, lines: list[Any]) -> None:
        self._lines: Iterator[Any] = iter(lines)

    def page(self, most: int = PAGE) -> list[Any]:
        """The next ones; none: there are no more."""
        return [*itertools.islice(self._lines, most)]


def _error(number: object, error: FleeceError) -> Message:
    said = {"kind": type(error).__name__, "what": error.what[:2000], "hint": error.hint}
    where = None if error.where is None else error.where[:2000]
    return Message({"id": number, "error": said | {"where": where}})


def _name(text: str) -> str:
    """A name of something in a store, as it may come from anybody."""
    if text in ("", ".", "..") or "/" in text or "\0" in text or len(os.fsencode(text)) > 255:
        raise WireError("a name is none of a store's")
    return text


def _key(text: str) -> str:
    """A key, of at most three names."""
    names = text.split("/")
    if len(names) > 3:
        raise WireError("a key has too many names")
    return "/".join(map(_name, names))
