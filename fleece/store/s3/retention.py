"""What keeps a store's objects from being deleted, where the bucket has object lock.

A lock can only become longer. So what this host remembers of one is never too much, whoever made it
longer since.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TypeVar

from fleece.errors import StoreError
from fleece.store.backend import Kept
from fleece.store.errors import Gone
from fleece.store.s3.cache import Cache
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.locks import Lock
from fleece.store.s3.client.problems import Denied

_AT_ONCE = 32
_T = TypeVar("_T")


class Retention:
    """The locks of a store's objects.

    Args:
        bucket: where; keys are whole ones.
        cache: what this host remembers.

    Attributes:
        days: for which points are locked; 0: they are not.
    """

    def __init__(self, bucket: Bucket, cache: Cache) -> None:
        self.days = 0
        self._bucket, self._cache = bucket, cache

    @functools.cached_property
    def possible(self) -> bool:
        """Whether the bucket has object lock; who may not know that, changes no lock."""
        with contextlib.suppress(Denied):
            return self._bucket.locking() is not None
        return False

    def need(self) -> None:
        """Raise `StoreError` if the bucket has no object lock."""
        if self._bucket.locking() is None:
            raise StoreError(
                "has no object lock: nothing in it can be kept from being deleted",
                where=self._bucket.where,
                hint="'fleece init --create-bucket --lock-days N' makes a bucket that has",
            )

    def lock(self) -> Lock | None:
        """What locks an object that is made now; None: nothing shall."""
        return Lock(self._until()) if self.days else None

    def _until(self) -> datetime:
        return (self._bucket.now() + timedelta(self.days)).replace(microsecond=0)

    def begin(self, keys: Sequence[str]) -> None:
        """Lock new objects; nothing, where points are not locked.

        Raises:
            StoreError: one cannot be locked.
        """
        if (lock := self.lock()) is not None:
            self._each(lambda key: self._bucket.set_lock(key, lock), keys)
            self._cache.keep_until(dict.fromkeys(keys, lock.until))

    def extend(self, keys: Sequence[str]) -> None:
        """Have objects locked as long as what is made now; nothing, where points are not locked.

        A lock that is too short is made half as long again as it must be: so each object is asked
        for once in that time, and not for each point that builds on it.

        Raises:
            StoreError: one cannot be locked for so long.
        """
        if not self.days:
            return
        until = self._until()
        slack = timedelta(max(1, self.days // 2))

        def extended(key: str) -> datetime:
            there = self._bucket.lock(key)
            if there is None or there.until < until:
                there = Lock(until + slack)
                self._bucket.set_lock(key, there)
            return there.until

        known = self._cache.until
        short = [key for key in keys if (at := known(key)) is None or at < until]
        self._cache.keep_until(self._each(extended, short))

    def kept(self, keys: Sequence[str]) -> Mapping[str, Kept]:
        """Those of some objects that nobody can delete now."""
        if not keys or not self.possible:
            return {}
        now = self._bucket.now()
        known = {key: at for key in keys if (at := self._cache.until(key)) and at > now}
        found = self._each(self._asked, [key for key in keys if key not in known])
        self._cache.keep_until({key: kept.until for key, kept in found.items() if kept.until})
        found |= {key: Kept(at) for key, at in known.items()}
        return {key: kept for key, kept in found.items() if kept.held or (kept.until or now) > now}

    def _asked(self, key: str) -> Kept:
        with contextlib.suppress(Gone):
            lock = self._bucket.lock(key)
            return Kept(None if lock is None else lock.until, self._bucket.held(key))
        return Kept()

    def of_version(self, key: str, version: str) -> Kept | None:
        """What keeps a version of an object now; None: nothing."""
        if not self.possible:
            return None
        lock, held = self._bucket.lock(key, version), self._bucket.held(key, version)
        lasts = lock is not None and lock.until > self._bucket.now()
        return Kept(lock.until if lock and lasts else None, held) if lasts or held else None

    def hold(self, keys: Sequence[str], *, on: bool) -> None:
        """Put objects under legal holds, or end these; nothing where the bucket has none."""
        if self.possible:
            self._each(lambda key: self._bucket.hold(key, on=on), keys)

    def _each(self, work: Callable[[str], _T], keys: Sequence[str]) -> dict[str, _T]:
        """Do it for many at once."""
        if not keys:
            return {}
        with ThreadPoolExecutor(min(_AT_ONCE, len(keys))) as pool:
            return dict(zip(keys, pool.map(work, keys), strict=True))
