"""A budget for the bytes of bodies in memory, over all requests."""

from __future__ import annotations

from collections import Counter
from typing import Final

from service.problems import Overloaded, OverShare

CLIENT_SHARE: Final = 0.5
"""The part of the budget that one client may hold, so that its slow bodies do not block all other clients."""


class Budget:
    """Up to ``limit`` bytes are held at the same time, and by one client ``CLIENT_SHARE`` of that."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._client_limit = int(limit * CLIENT_SHARE)
        self._by_client: Counter[bytes] = Counter()
        self.held = 0
        """Bytes held now."""
        self.taken = 0
        """Bytes taken since the start."""

    def take(self, client: bytes, size: int) -> None:
        """Hold ``size`` more bytes; raises Overloaded or OverShare, and then holds none of them."""
        if self.held + size > self._limit:
            raise Overloaded("too many bytes of bodies are in memory", headers=_CLOSE, kind="bodies", reason="full")
        if self._by_client[client] + size > self._client_limit:
            raise OverShare("this client has too many bytes of bodies in memory", headers=_CLOSE, kind="bodies")
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
