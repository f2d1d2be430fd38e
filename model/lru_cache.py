"""A bounded cache that drops the least recently used value. The whole project uses this one class.

``cachetools`` does not fit: this cache is also thread-safe, lists its values in order of use, reads a value without counting that as a
use (``peek``), and evicts on request (the state pool reuses the evicted state's slot).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """The ``capacity`` most recently used values; thread-safe. ``get`` and ``put`` are uses.

    ``ttl_s`` is the time to live: ``get`` and ``peek`` return a value for that many seconds after it was put. None means no limit, which
    is right only if nobody else changes the source of the values.
    """

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self.capacity = capacity
        self._ttl_s = ttl_s
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; None if it is absent or too old."""
        with self._lock:
            found = self._fresh(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def peek(self, key: K) -> V | None:
        """The value, as ``get`` returns it, without counting as a use."""
        with self._lock:
            found = self._fresh(key)
            return None if found is None else found[0]

    def put(self, key: K, value: V) -> None:
        """Store a value, and drop the least recently used one if there are more than ``capacity``."""
        with self._lock:
            self._values[key] = (value, 0.0 if self._ttl_s is None else time.monotonic())
            self._values.move_to_end(key)
            if len(self._values) > self.capacity:
                self._values.popitem(last=False)

    def evict(self) -> V:
        """Remove the least recently used value and return it; KeyError if there is none."""
        with self._lock:
            _, (value, _) = self._values.popitem(last=False)
            return value

    def drop(self, key: K) -> V | None:
        """Remove a value and return it; None if it is absent."""
        with self._lock:
            found = self._values.pop(key, None)
            return None if found is None else found[0]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()

    def keys(self) -> list[K]:
        """All keys, the least recently used first."""
        with self._lock:
            return list(self._values)

    def values(self) -> list[V]:
        """All values, the least recently used first."""
        with self._lock:
            return [value for value, _ in self._values.values()]

    def _fresh(self, key: K) -> tuple[V, float] | None:
        found = self._values.get(key)
        if found is not None and self._ttl_s is not None and time.monotonic() - found[1] > self._ttl_s:
            del self._values[key]
            return None
        return found
