"""Places for requests of one kind: so many at once, a few more wait a moment, the rest is refused."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

Refusal = Literal["full", "late", "share"]
"""No place and no room to wait; no place became free in time; this client holds its share already."""


class ConcurrencyLimit:
    """At most ``limit`` requests inside and ``waiting`` before it, each for ``wait_s`` seconds.

    Clients are served in turn: a free place goes to whoever has the fewest inside, and of those to the longest waiter.
    Where no room is left to wait, the newest waiter of the client with most requests here makes room for a client with
    fewer. ``share``: part of all of these places that one client may hold at any time, also while nobody else comes.

    What is inside bounds the latency of what is accepted: a request finds at most ``limit + waiting`` others ahead of it,
    however many are sent.
    """

    def __init__(self, limit: int, waiting: int, wait_s: float, share: float) -> None:
        self._limit = limit
        self._most_waiting = waiting
        self._wait_s = wait_s
        self._most_held = max(1, int((limit + waiting) * share))
        self._queues: dict[bytes, deque[asyncio.Future[bool]]] = {}
        self._held: dict[bytes, int] = {}
        self._inside: dict[bytes, int] = {}
        self.inside = 0
        self.waiting = 0
        """Requests before the gate."""

    def refusal(self, client: bytes) -> Refusal | None:
        """Why this client's next request cannot even wait, found without waiting; None when it can."""
        if self.inside >= self._limit and self.waiting >= self._most_waiting and self._heavier(client) is None:
            return "full"
        return "share" if self._held.get(client, 0) >= self._most_held else None

    def take(self, client: bytes) -> bool:
        """Take a place, which must be left, where one is free and this client may have it."""
        held = self._held.get(client, 0)
        if self.inside >= self._limit or held >= self._most_held:
            return False
        self._held[client] = held + 1
        self.inside += 1
        self._inside[client] = self._inside.get(client, 0) + 1
        return True

    async def enter(self, client: bytes) -> bool:
        """Take a place, which must be left; False when none became free in time. To be called where none is refused."""
        if self.take(client):
            return True
        self._held[client] = self._held.get(client, 0) + 1
        if self.waiting >= self._most_waiting:
            self._displace(client)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                if await turn:
                    return True
        except TimeoutError:
            self._give_up(turn, client)
            return False
        except asyncio.CancelledError:
            self._give_up(turn, client)
            raise
        # Somebody else with fewer requests has the room now.
        self._release(self._held, client)
        return False

    def leave(self, client: bytes) -> None:
        """Hand the place on."""
        self._release(self._held, client)
        self._release(self._inside, client)
        while self._queues:
            # The dictionary is in the order in which they came to wait, and ``min`` takes the first of equals.
            following = min(self._queues, key=lambda waiting: self._inside.get(waiting, 0))
            queue = self._queues.pop(following)
            turn = queue.popleft()
            self.waiting -= 1
            if queue:
                # To the end of the line.
                self._queues[following] = queue
            if not turn.done():
                self._inside[following] = self._inside.get(following, 0) + 1
                turn.set_result(True)
                return
        self.inside -= 1

    def others(self, client: bytes) -> bool:
        """Whether anybody else has a request inside."""
        return len(self._inside) > (client in self._inside)

    def _heavier(self, client: bytes) -> bytes | None:
        """Who has more requests here than this client would have with one more, and so makes room; it must wait, too."""
        heaviest = max(self._queues, key=lambda waiting: self._held[waiting], default=None)
        return heaviest if heaviest is not None and self._held[heaviest] > self._held.get(client, 0) + 1 else None

    def _displace(self, client: bytes) -> None:
        heaviest = self._heavier(client)
        if heaviest is not None:
            turn = self._queues[heaviest][-1]
            self._unqueue(turn, heaviest)
            if not turn.done():
                turn.set_result(False)

    def _unqueue(self, turn: asyncio.Future[bool], client: bytes) -> None:
        queue = self._queues.get(client)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self.waiting -= 1
            if not queue:
                del self._queues[client]

    def _give_up(self, turn: asyncio.Future[bool], client: bytes) -> None:
        if turn.done() and not turn.cancelled() and turn.result():
            # The place came in the same moment: it goes to the next.
            self.leave(client)
            return
        turn.cancel()
        self._unqueue(turn, client)
        self._release(self._held, client)

    @staticmethod
    def _release(counts: dict[bytes, int], client: bytes) -> None:
        if counts[client] > 1:
            counts[client] -= 1
        else:
            del counts[client]
