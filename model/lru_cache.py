"""A bounded cache that drops the least recently used value. The whole project uses this class.

``cachetools`` is not used, because this cache needs more: it is thread-safe, lists its values in order of use, and
can read a value without counting this as a use (``peek``). This cache also evicts on request, because the state pool
reuses the slot of the evicted state.
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
    """Holds the ``capacity`` most recently used values. The cache is thread-safe. ``get`` and ``put`` count as uses.

    ``ttl_s`` is the time to live: ``get`` and ``peek`` return a value for this number of seconds after it was put.
    With None, values stay valid without limit. This is correct only if no other process changes the source of the
    values.
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
        """Return the value and mark it as the most recently used. Return None if the value is absent or too old."""
        with self._lock:
            found = self._fresh(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def peek(self, key: K) -> V | None:
        """Return the value like ``get``, but without counting this as a use."""
        with self._lock:
            found = self._fresh(key)
            return None if found is None else found[0]

    def put(self, key: K, value: V) -> None:
        """Store a value. If there are more than ``capacity`` values, drop the least recently used one."""
        with self._lock:
            self._values[key] = (value, 0.0 if self._ttl_s is None else time.monotonic())
            self._values.move_to_end(key)
            if len(self._values) > self.capacity:
                self._values.popitem(last=False)

    def evict(self) -> V:
        """Remove the least recently used value and return it. Raise KeyError if there is none."""
        with self._lock:
            _, (value, _) = self._values.popitem(last=False)
            return value

    def drop(self, key: K) -> V | None:
        """Remove a value and return it. Return None if the value is absent."""
        with self._lock:
            found = self._values.pop(key, None)
            return None if found is None else found[0]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()

    def keys(self) -> list[K]:
        """Return all keys, the least recently used first."""
        with self._lock:
            return list(self._values)

    def values(self) -> list[V]:
        """Return all values, the least recently used first."""
        with self._lock:
            return [value for value, _ in self._values.values()]

    def _fresh(self, key: K) -> tuple[V, float] | None:
        found = self._values.get(key)
        if found is not None and self._ttl_s is not None and time.monotonic() - found[1] > self._ttl_s:
            del self._values[key]
            return None
        return found
