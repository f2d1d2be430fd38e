"""The budget that limits the bytes of request bodies in memory. All requests share this budget."""

from __future__ import annotations

from collections import Counter
from typing import Final

from service.problems import Overloaded, OverShare

CLIENT_SHARE: Final = 0.5
"""Fraction of the budget that one client may hold. This limit keeps one client's slow bodies from blocking all other clients."""


class Budget:
    """Allows up to ``limit`` bytes to be held at the same time. One client may hold the fraction ``CLIENT_SHARE`` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._client_limit = int(limit * CLIENT_SHARE)
        self._by_client: Counter[bytes] = Counter()
        self.held = 0
        """Number of bytes that are held now."""
        self.taken = 0
        """Number of bytes taken since the service started."""

    def take(self, client: bytes, size: int) -> None:
        """Hold ``size`` more bytes. If there is no room for all of them, hold none and raise Overloaded or OverShare."""
        if self.held + size > self._limit:
            raise Overloaded("request bodies take too much memory", headers=_CLOSE, kind="bodies", reason="full")
        if self._by_client[client] + size > self._client_limit:
            raise OverShare("this client's request bodies take too much memory", headers=_CLOSE, kind="bodies")
        self.held += size
        self.taken += size
        self._by_client[client] += size

    def give(self, client: bytes, size: int) -> None:
        """Release ``size`` bytes."""
        self.held -= size
        self._by_client[client] -= size
        if self._by_client[client] <= 0:
            del self._by_client[client]


_CLOSE: Final = {"Connection": "close"}
