"""What this host remembers of objects in buckets: the few bytes that a listing opens them by.

A file for each store, in a folder that is its user's alone. Nothing is decided by it: it is asked
by an object's key, ETag and length, its bytes pass the checks of a delta like any others, and a
delta that does not open by them is read anew. Without it everything works, with more requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import xxhash

from fleece.private import private_folder

Identity: TypeAlias = tuple[str, str, int]
"""An object's key, ETag and length."""
Ranges: TypeAlias = tuple[tuple[int, bytes], ...]
"""Bytes of an object, each with its position."""

_VERSION = 1
_SCHEMA = """create table if not exists piece
    (key text, etag text, length integer, position integer, data blob, hash blob,
     primary key (key, position)) without rowid"""
_PAGES = """create table if not exists page
    (id integer primary key, key text, etag text, length integer, position integer, data blob,
     hash blob, unique (key, position))"""
_LOCKS = "create table if not exists lock (key text primary key, until integer) without rowid"
_MOST = 256 << 20
"""Bytes of the file, behind which the older quarter of the pages goes before one more comes."""
_WAIT = 5.0
"""Seconds for another process that writes."""


def place() -> Path:
    """The folder of this user's caches."""
    own = os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own) / "fleece"
    return Path("/var/cache/fleece") if os.geteuid() == 0 else Path.home() / ".cache/fleece"


class Cache:
    """The bytes of one store's objects.

    Args:
        store: its address.
    """

    def __init__(self, store: str) -> None:
        name = hashlib.sha256(store.encode()).hexdigest()[:32]
        self._name = f"s3-{_VERSION}-{name}.sqlite"
        self._known: dict[Identity, Ranges] | None = None
        self._new: dict[Identity, Ranges] = {}
        self._until: dict[str, datetime] | None = None

    def get(self, identity: Identity) -> Ranges | None:
        """What is known of an object; None: nothing."""
        return self._remembered().get(identity)

    def put(self, identity: Identity, ranges: Ranges) -> None:
        """Remember something of an object; on disk at the next `keep`."""
        known = self._remembered()
        if known.get(identity) != ranges:
            known[identity] = self._new[identity] = ranges

    def forget(self, identity: Identity) -> bool:
        """Forget an object; gives whether anything was known."""
        self._new.pop(identity, None)
        known = self._remembered().pop(identity, None) is not None
        if known:
            self._write([], [identity[0]])
        return known

    def page(self, identity: Identity, position: int) -> bytes | None:
        """Pages of a delta that are remembered from a position on; None: none are."""
        asked = "select data, hash from page where key = ? and etag = ? and length = ?"
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base:
            rows = base.execute(f"{asked} and position = ?", (*identity, position))
            for data, known in rows:
                if isinstance(data, bytes) and xxhash.xxh3_128_digest(data) == known:
                    return data
        return None

    def put_page(self, identity: Identity, position: int, data: bytes) -> None:
        """Write pages of a delta down."""
        row = (*identity, position, data, xxhash.xxh3_128_digest(data))
        columns = "key, etag, length, position, data, hash"
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base, base:
            _make_room(base)
            base.execute(f"insert or replace into page ({columns}) values (?, ?, ?, ?, ?, ?)", row)

    def forget_pages(self, identity: Identity) -> bool:
        """Forget the pages of a delta; gives whether there were any."""
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base, base:
            return base.execute("delete from page where key = ?", identity[:1]).rowcount > 0
        return False

    def keep(self, there: Iterable[Identity] | None = None) -> None:
        """Write down what is new.

        Args:
            there: all objects that there are; others are forgotten. None: nobody has looked.
        """
        gone: list[str] = []
        if there is not None and self._known:
            stays = {*there}
            lost = [identity for identity in self._known if identity not in stays]
            for identity in lost:
                del self._known[identity]
                self._new.pop(identity, None)
            gone = [key for key, _, _ in lost]
        if self._new or gone:
            self._write(self._new.items(), gone)
            self._new = {}

    def until(self, key: str) -> datetime | None:
        """When a lock ends that an object has at least; None: none is known of that lasts."""
        if self._until is None:
            self._until = {}
            with contextlib.suppress(OSError, sqlite3.Error, OverflowError), self._opened() as base:
                for known, seconds in base.execute("select key, until from lock"):
                    self._until[known] = datetime.fromtimestamp(seconds, UTC)
        return self._until.get(key)

    def keep_until(self, locks: Mapping[str, datetime]) -> None:
        """Write down when locks of objects end; those that have ended are forgotten."""
        if not locks:
            return
        self.until("")
        self._until = {**(self._until or {}), **locks}
        rows = [(key, int(until.timestamp())) for key, until in locks.items()]
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base, base:
            base.execute("delete from lock where until < ?", (int(time.time()),))
            base.executemany("insert or replace into lock values (?, ?)", rows)

    def _remembered(self) -> dict[Identity, Ranges]:
        if self._known is None:
            self._known = self._load()
        return self._known

    def _load(self) -> dict[Identity, Ranges]:
        found: dict[Identity, list[tuple[int, bytes]]] = {}
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base:
            rows = base.execute("select key, etag, length, position, data, hash from piece")
            for key, etag, length, position, data, known in rows:
                if xxhash.xxh3_128_digest(data) == known:
                    found.setdefault((key, etag, length), []).append((position, data))
        return {identity: tuple(pieces) for identity, pieces in found.items()}

    def _write(self, new: Iterable[tuple[Identity, Ranges]], gone: Collection[str]) -> None:
        """Write, as far as that is possible."""
        rows = [
            (*identity, position, data, xxhash.xxh3_128_digest(data))
            for identity, ranges in new
            for position, data in ranges
        ]
        with contextlib.suppress(OSError, sqlite3.Error), self._opened() as base, base:
            keys = {(row[0],) for row in rows} | {(key,) for key in gone}
            base.executemany("delete from piece where key = ?", sorted(keys))
            base.executemany("delete from page where key = ?", [(key,) for key in sorted(gone)])
            base.executemany("insert into piece values (?, ?, ?, ?, ?, ?)", rows)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The file, open; one that is no database is made anew.

        Raises:
            OSError: the folder is not this user's alone, or cannot be made.
            sqlite3.Error: the file cannot be used.
        """
        folder = place()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with private_folder(folder):
            path = folder / self._name
            try:
                base = _connected(path)
            except sqlite3.DatabaseError:
                path.unlink(missing_ok=True)
                base = _connected(path)
            with contextlib.closing(base):
                yield base


def _connected(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=_WAIT)
    try:
        base.execute("pragma synchronous = off")
        base.execute(_SCHEMA)
        base.execute(_PAGES)
        base.execute(_LOCKS)
    except BaseException:
        base.close()
        raise
    return base


def _make_room(base: sqlite3.Connection) -> None:
    """Forget the oldest pages, if the file is too large."""
    used = "select page_count - freelist_count, page_size from "
    parts = "pragma_page_count, pragma_freelist_count, pragma_page_size"
    count, size = base.execute(used + parts).fetchone()
    if count * size > _MOST:
        base.execute(
            "delete from page where id <= (select min(id) + (max(id) - min(id)) / 4 from page)"
        )
