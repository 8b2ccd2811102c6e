"""A small cache for many threads: what several ask for at the same time is made once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


def _one(value: object) -> int:
    return 1


class _Slot(Generic[V]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: V | None = None
        self.weight = 0


class Cache(Generic[V]):
    """The values that were asked for last, by key.

    Args:
        most: how much they may weigh together. The one that was asked for last is always kept.
        weigh: the weight of a value; else each weighs 1.

    Attributes:
        made: how many were made so far.
    """

    def __init__(self, most: int, weigh: Callable[[V], int] = _one) -> None:
        self._most = most
        self._weigh = weigh
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot[V]] = OrderedDict()
        self._weight = 0
        self.made = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key. An error of `make` is the caller's, and nothing is kept of it."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.value is None:
                try:
                    slot.value = make()
                except BaseException:
                    self._drop(key, slot)
                    raise
                self._made(key, slot, self._weigh(slot.value))
            return slot.value

    def _made(self, key: Hashable, slot: _Slot[V], weight: int) -> None:
        with self._lock:
            self.made += 1
            if self._slots.get(key) is not slot:
                return
            slot.weight = weight
            self._weight += weight
            while self._weight > self._most and len(self._slots) > 1:
                _, oldest = self._slots.popitem(last=False)
                self._weight -= oldest.weight

    def _drop(self, key: Hashable, slot: _Slot[V]) -> None:
        with self._lock:
            if self._slots.get(key) is slot:
                del self._slots[key]
