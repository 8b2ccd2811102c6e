"""A store that a fleece elsewhere serves (`fleece.store.backend.Backend`)."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from fleece.cancel import CancelToken
from fleece.delta.blob import Blob
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.folder import PRIVATE_FILE
from fleece.hashing import Buffer
from fleece.store.backend import Batch, Draft, Listing, Patience, Site
from fleece.store.remote.channel import Channel
from fleece.store.remote.wire import MAX_DATA, PIECE, Message

_SHELL = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=20", "-T")
SHELL_VARIABLE = "FLEECE_RSH"
_LOCK_TICK = 5.0
"""Seconds that one request for a lock waits: in between it is asked whether to go on."""


@dataclass(frozen=True)
class _Place:
    """Where a store is, by `ssh://[USER@]HOST[:PORT]/PATH`."""

    text: str
    login: str
    port: int | None
    path: str

    @staticmethod
    def of(text: str) -> _Place:
        """Read a store's name.

        Raises:
            UsageError: it is none.
        """
        try:
            found = urlsplit(text)
            host, port = found.hostname or "", found.port
        except ValueError:
            host, port = "", None
        else:
            login = f"{unquote(found.username)}@{host}" if found.username else host
            path = unquote(found.path)
            # What begins with a dash would be an option of ssh's.
            fits = host and len(path) > 1 and not login.startswith("-") and "\0" not in path
            if fits and not (host.startswith("-") or found.query or found.fragment):
                if found.password is not None:
                    raise UsageError(
                        "no password is taken on a command line",
                        where=f"ssh://{login}{path}",
                        hint="use a key, as ssh knows it",
                    )
                return _Place(text, login, port, path)
        raise UsageError("names no store", where=text, hint="write ssh://[USER@]HOST[:PORT]/PATH")

    def words(self) -> list[str]:
        """The command line that leads there."""
        shell = os.environ.get(SHELL_VARIABLE)
        words = [*_SHELL] if not shell else shlex.split(shell)
        if self.port is not None:
            words += ["-p", str(self.port)]
        return [*words, self.login, shlex.join(["fleece", "serve-store", self.path])]


class RemoteBackend:
    """A store elsewhere.

    Args:
        text: its name, `ssh://[USER@]HOST[:PORT]/PATH`.
        mode: permissions of what is made there.
        channel: that leads there; None: none does yet.
        cancel: ends every wait for the other side.
    """

    def __init__(
        self,
        text: str,
        mode: int = PRIVATE_FILE,
        channel: Channel | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.where = text
        self._place = _Place.of(text)
        self._mode = mode
        self._shared = channel
        self._cancel = cancel or CancelToken()

    @functools.cached_property
    def _channel(self) -> Channel:
        if self._shared is not None:
            return self._shared
        return Channel(self._place.words(), self.where, self._cancel)

    @functools.cached_property
    def _greeted(self) -> Message:
        return self._channel.ask("hello", path=self._place.path)

    @property
    def begins_ahead(self) -> bool:
        """Whether several points of a guest can be begun there at once."""
        return self._greeted.flag("begins_ahead")

    def _ask(self, do: str, data: bytes = b"", /, **said: object) -> Message:
        _ = self._greeted  # before anything else is asked
        return self._channel.ask(do, data, mode=self._mode, **said)

    @property
    def near(self) -> bool:
        """What is read and written again goes through the line."""
        return False

    def forget(self, key: str) -> bool:
        """Nothing is remembered here."""
        return False

    @property
    def address(self) -> str:
        """Its name."""
        return self.where

    def sharing(self, mode: int) -> RemoteBackend:
        """The same, over the same connection."""
        return RemoteBackend(self.where, mode, self._channel, self._cancel)

    def create(self, marker: bytes, site: Site | None = None) -> None:
        """Make the store there."""
        if site not in (None, Site()):
            raise UsageError(
                "is a folder: it is in no bucket, and nothing can be locked in it", where=self.where
            )
        self._ask("create", marker)

    def check(self) -> None:
        """Raise `StoreError` if nothing is there."""
        self._ask("check")

    def writable(self, key: str = "") -> bool:
        """Whether objects can be replaced and deleted there."""
        return self._ask("writable", key=key).flag("is")

    def room(self) -> int | None:
        """Bytes that it can still take."""
        return self._ask("room").maybe("room")

    def name(self, key: str) -> str:
        """What an object is called in messages."""
        return f"{self.where}/{key}"

    def listing(self, guest: str | None = None) -> Listing:
        """All deltas, and what is not fleece's; of a guest, or of all."""
        made = Listing()
        of = {} if guest is None else {"guest": guest}
        handle = self._ask("list", **of).number("handle")
        more = True
        while more:
            page = self._ask("lines", handle=handle)
            more = page.flag("more")
            made.deltas += page.names("deltas")
            made.foreign += page.names("foreign")
            made.marks += page.names("marks")
        return made

    def open(self, key: str) -> Blob:
        """An object to be read."""
        return _Blob(self._channel, self.name(key), self._ask("open", key=key))

    def has(self, key: str) -> bool:
        """Whether anything has a key."""
        return self._ask("has", key=key).flag("is")

    def stamp(self, key: str) -> str:
        """What changes whenever an object's content does."""
        return self._ask("stamp", key=key).text("stamp")

    def get(self, key: str, most: int) -> bytes:
        """A small object's content."""
        found = self._ask("get", key=key, most=most).data
        if len(found) > most:
            raise StoreError(f"is longer than {most} bytes", where=self.name(key))
        return found

    def put(self, key: str, data: bytes) -> None:
        """Give a small object its content."""
        self._ask("put", data, key=key)

    def delete(self, key: str) -> None:
        """Delete a small object."""
        self._ask("delete", key=key)

    def sweep(self, key: str) -> None:
        """Remove what killed writers left of a small object."""
        self._ask("sweep", key=key)

    @contextlib.contextmanager
    def lock(self, guest: str, name: str, patience: Patience | None = None) -> Iterator[None]:
        """Be the only one that changes what is below a guest's key."""
        patience = patience or Patience()
        end = time.monotonic() + patience.seconds
        handle = self._locked(guest, name, end, patience).number("handle")
        try:
            yield
        finally:
            self._ask("close", handle=handle)

    def _locked(self, guest: str, name: str, end: float, patience: Patience) -> Message:
        while True:
            patience.cancel.check()
            began = time.monotonic()
            seconds = math.ceil(min(max(0.0, end - began), _LOCK_TICK))
            try:
                return self._ask("lock", guest=guest, name=name, seconds=seconds)
            except StoreError:
                waited = time.monotonic() - began
                if waited < seconds or time.monotonic() >= end:  # else it was held all that time
                    raise

    def batch(self, guest: str, name: str) -> Batch:
        """Begin a point."""
        return _Batch(self._channel, self.name(guest), self._ask("batch", guest=guest, name=name))

    def left(self, guest: str) -> list[Batch]:
        """The batches that killed writers left."""
        found: list[Batch] = []
        handle = self._ask("left", guest=guest).number("handle")
        while (one := self._ask("next_left", handle=handle)).flag("more"):
            found.append(_Batch(self._channel, self.name(guest), one))
        return found

    def replace(self, key: str) -> Draft:
        """Begin an object that shall take the place of another."""
        return _Draft(self._channel, self.where, self._ask("replace", key=key))

    @contextlib.contextmanager
    def spool(self) -> Iterator[Draft]:
        """Begin an object of which is not known yet where it belongs."""
        draft = _Draft(self._channel, self.where, self._ask("spool"))
        try:
            yield draft
        finally:
            self._ask("close", handle=draft.handle)

    def drop(self, point: str) -> Sequence[str]:
        """Take a point away."""
        return self._ask("drop", key=point).names("names")

    def tidy(self, points: Sequence[str]) -> Sequence[str]:
        """Remove what killed writers left."""
        removed: list[str] = []
        for at in range(0, len(points), 256):
            part = [*points[at : at + 256]]
            removed += self._ask("tidy", points=part).names("names")
        return removed


class _Blob:
    """An object there, open for reading."""

    def __init__(self, channel: Channel, name: str, opened: Message) -> None:
        self.name, self.length = name, opened.number("length")
        self._channel: Channel | None = channel
        self._handle = opened.number("handle")

    def _open(self) -> Channel:
        if self._channel is None:
            raise StoreError("is closed", where=self.name)
        return self._channel

    def read_at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        if position + length > self.length:
            raise DeltaError("the file is cut", where=self.name)
        parts = []
        while length > 0:
            some = min(length, MAX_DATA)
            asked = {"handle": self._handle, "position": position, "length": some}
            part = self._open().ask("read", **asked).data
            if len(part) != some:
                raise DeltaError("the file is cut", where=self.name)
            parts.append(part)
            position, length = position + some, length - some
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_from(self, position: int) -> int:
        """Where it next has data."""
        asked = {"handle": self._handle, "position": position}
        found = self._open().ask("data_from", **asked).number("position")
        return min(max(found, position), self.length)

    def close(self) -> None:
        """Let it go."""
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(StoreError):
                channel.ask("close", handle=self._handle)


class _Sink:
    """An object that is being written there."""

    def __init__(self, channel: Channel, handle: int) -> None:
        self._channel, self._handle = channel, handle

    def write(self, data: Buffer, /) -> int:
        """Send bytes."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE):
            self._channel.write(self._handle, view[at : at + PIECE])
        return len(view)

    def sync(self) -> None:
        """Make what was written durable there."""
        self._channel.ask("sync", handle=self._handle)
        self._channel.check(self._handle)


class _Batch:
    """The objects of one point that is being written there."""

    def __init__(self, channel: Channel, where: str, begun: Message) -> None:
        self.name = begun.text("name")
        self.where = f"{where}/{begun.text('where').rpartition('/')[2]}"
        self._channel, self._handle = channel, begun.number("handle")
        self._sinks: list[int] = []

    def names(self) -> list[str]:
        """Of the deltas in it."""
        return self._channel.ask("names", handle=self._handle).names("names")

    def open(self, name: str) -> Blob:
        """What is there of an object."""
        opened = self._channel.ask("open_in", handle=self._handle, name=name)
        return _Blob(self._channel, f"{self.where}/{name}", opened)

    def create(self, name: str, most: int | None = None) -> _Sink:
        """A new object."""
        return self._made("make", name=name)

    def reopen(self, name: str, keep: int) -> _Sink:
        """One that is there, cut."""
        return self._made("reopen", name=name, keep=keep)

    def _made(self, do: str, /, **said: object) -> _Sink:
        handle = self._channel.ask(do, handle=self._handle, **said).number("handle")
        self._sinks.append(handle)
        return _Sink(self._channel, handle)

    def seal(self) -> None:
        """Make all objects durable."""
        self._channel.ask("seal", handle=self._handle)
        for sink in self._sinks:
            self._channel.check(sink)

    def commit(self, name: str) -> None:
        """Make it visible."""
        self._channel.ask("commit", handle=self._handle, name=name)

    def discard(self) -> None:
        """Remove what is fleece's of it."""
        self._channel.ask("discard", handle=self._handle)


class _Draft:
    """An object there that nobody sees yet."""

    def __init__(self, channel: Channel, where: str, made: Message) -> None:
        self.key, self.handle = made.text("key"), made.number("handle")
        self._name = f"{where}/{self.key}"
        self._channel, self._number = channel, made.number("sink")
        self.sink = _Sink(channel, self._number)

    def seal(self) -> None:
        """Make all that was written durable."""
        self._channel.ask("seal", handle=self.handle)
        self._channel.check(self._number)

    def open(self) -> Blob:
        """What was written."""
        opened = self._channel.ask("open_draft", handle=self.handle)
        return _Blob(self._channel, self._name, opened)

    def place(self, key: str) -> None:
        """Make it visible under a key."""
        self._channel.ask("place", handle=self.handle, key=key)

    def discard(self) -> None:
        """Remove it, as far as that is possible."""
        with contextlib.suppress(StoreError):
            self._channel.ask("discard", handle=self.handle)
