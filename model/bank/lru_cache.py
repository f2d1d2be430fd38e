"""A bounded cache."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The most recently used values, at most ``capacity``; thread-safe.

    ``ttl_s``: seconds a value is trusted. None means until it is dropped, which is right only for the sole writer.
    """

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        """The value, now the most recently used, or None if it is absent or too old."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            if self._ttl_s is not None and time.monotonic() - found[1] > self._ttl_s:
                del self._values[key]
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, and drop the least recently used one if there are too many."""
        with self._lock:
            self._values[key] = (value, time.monotonic())
            self._values.move_to_end(key)
            if len(self._values) > self._capacity:
                self._values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a value, present or not."""
        with self._lock:
            self._values.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
