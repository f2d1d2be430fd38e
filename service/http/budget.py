"""Bytes of bodies in memory, over all requests."""

from __future__ import annotations

from collections import Counter
from typing import Final

from service.problems import Overloaded, OverShare

CLIENT_SHARE: Final = 0.5
"""Part of the budget that one client may hold, so that slow bodies of one do not end everybody's."""


class Budget:
    """At most ``most`` bytes are held at once, and of one client the half of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = int(most * CLIENT_SHARE)
        self._of: Counter[bytes] = Counter()
        self.held = 0
        """Bytes held now."""
        self.taken = 0
        """Bytes taken ever."""

    def take(self, client: bytes, size: int) -> None:
        """Hold ``size`` bytes more; raises Overloaded or OverShare, and then holds none of them."""
        if self.held + size > self._most:
            raise Overloaded("too many bytes of bodies are in memory", headers=_CLOSE, kind="bodies", reason="full")
        if self._of[client] + size > self._most_of_one:
            raise OverShare("this client has too many bytes of bodies in memory", headers=_CLOSE, kind="bodies")
        self.held += size
        self.taken += size
        self._of[client] += size

    def give(self, client: bytes, size: int) -> None:
        """Hold ``size`` bytes less."""
        self.held -= size
        self._of[client] -= size
        if self._of[client] <= 0:
            del self._of[client]


_CLOSE: Final = {"Connection": "close"}
