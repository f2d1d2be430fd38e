"""Places for requests of one kind: so many at once, a few more wait a moment, the rest is refused."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Literal

Refusal = Literal["full", "late", "share"]
"""No place and no room to wait; no place became free in time; this client holds its share already."""


class Gate:
    """At most ``limit`` requests inside and ``waiting`` before it, each for ``wait_s`` seconds, first come first served.

    ``share``: part of all of these places that one client may hold. What is inside bounds the latency of what is
    accepted: a request finds at most ``limit + waiting`` others ahead of it, however many are sent.
    """

    def __init__(self, limit: int, waiting: int, wait_s: float, share: float) -> None:
        self._limit = limit
        self._most_waiting = waiting
        self._wait_s = wait_s
        self._most_held = max(1, int((limit + waiting) * share))
        self._queue: deque[asyncio.Future[None]] = deque()
        self._held: Counter[bytes] = Counter()
        self.inside = 0

    @property
    def waiting(self) -> int:
        """Requests before the gate."""
        return len(self._queue)

    def refusal(self, client: bytes) -> Refusal | None:
        """Why this client's next request cannot even wait, found without waiting; None when it can."""
        if self.inside >= self._limit and len(self._queue) >= self._most_waiting:
            return "full"
        return "share" if self._held[client] >= self._most_held else None

    async def enter(self, client: bytes) -> bool:
        """Take a place, which must be left; False when none became free in time. To be called where none is refused."""
        self._held[client] += 1
        if self.inside < self._limit:
            self.inside += 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except TimeoutError:
            self._give_up(turn, client)
            return False
        except asyncio.CancelledError:
            self._give_up(turn, client)
            raise
        return True

    def leave(self, client: bytes) -> None:
        """Hand the place to who has waited longest."""
        self._release(client)
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1

    def _give_up(self, turn: asyncio.Future[None], client: bytes) -> None:
        if turn.done() and not turn.cancelled():
            # The place came in the same moment: it goes to the next.
            self.leave(client)
            return
        turn.cancel()
        if turn in self._queue:
            self._queue.remove(turn)
        self._release(client)

    def _release(self, client: bytes) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
