"""The stores of a run, opened as seldom as can be: a passphrase costs time, a bucket requests."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator

import fleece
from fleece.cancel import CancelToken
from fleece.fleet.config import StoreConfig


class Shelf:
    """Stores that are open, for one step at a time each; safe for any number of threads.

    Not every storage can be asked by several threads at once, so there are as many of one store as
    steps use it at once. They share what was read of its deltas (`Store.described`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[str, list[fleece.Store]] = collections.defaultdict(list)
        self._described: dict[str, dict[str, tuple[str, fleece.Entry]]] = collections.defaultdict(
            dict
        )

    @contextlib.contextmanager
    def borrowed(
        self, config: StoreConfig, secret: fleece.Secret | None, cancel: CancelToken
    ) -> Iterator[fleece.Store]:
        """A context in which a store is the caller's. After an error it is not used again.

        Args:
            config: which.
            secret: its key; None: it has none.
            cancel: of the run.

        Raises:
            StoreError: it cannot be opened.
        """
        with self._lock:
            free = self._free[config.name]
            store = free.pop() if free else None
            described = self._described[config.name]
        if store is None:
            store = fleece.open_store(config.place, secret, cancel)
            store.described = described
        yield store
        with self._lock:
            free.append(store)
