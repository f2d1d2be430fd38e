"""A bounded cache of decoded rows."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

from model.bank.row import Row

K = TypeVar("K", bound=Hashable)


class RowCache(Generic[K]):
    """The most recently used rows, at most ``capacity``; thread-safe.

    ``ttl_s``: seconds a row is trusted. None means until it is dropped, which is right only for the sole writer.
    """

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._rows: OrderedDict[K, tuple[Row, float]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> Row | None:
        """The row, now the most recently used, or None if it is absent or too old."""
        with self._lock:
            found = self._rows.get(key)
            if found is None:
                return None
            if self._ttl_s is not None and time.monotonic() - found[1] > self._ttl_s:
                del self._rows[key]
                return None
            self._rows.move_to_end(key)
            return found[0]

    def put(self, key: K, row: Row) -> None:
        """Keep a row, and drop the least recently used one if there are too many."""
        with self._lock:
            self._rows[key] = (row, time.monotonic())
            self._rows.move_to_end(key)
            if len(self._rows) > self._capacity:
                self._rows.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a row, present or not."""
        with self._lock:
            self._rows.pop(key, None)
