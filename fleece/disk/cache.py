"""A small cache for many threads: what several ask for at the same time is made once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class _Slot(Generic[V]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: V | None = None


class Cache(Generic[V]):
    """The values that were asked for last, by key.

    Args:
        most: how many to keep.

    Attributes:
        made: how many were made so far.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot[V]] = OrderedDict()
        self.made = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key. An error of `make` is the caller's, and nothing is kept of it."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._most:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.value is None:
                slot.value = make()
                with self._lock:
                    self.made += 1
            return slot.value
