"""A concurrency limit for requests of one kind: some run, a few more wait a short time, the others are refused."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

Refusal = Literal["full", "late", "share"]
"""Why a request is refused: running and waiting slots are full; no slot became free in time; the client has its share already."""


class ConcurrencyLimit:
    """Up to ``limit`` requests run, and up to ``waiting`` wait for a slot, each for up to ``wait_s`` seconds.

    Clients are served fairly: a free slot goes to the client with the fewest running requests, and among those to the longest
    waiter. When all waiting slots are taken, a new client displaces the newest waiter of the client with the most requests, if that
    one has more. ``share``: the part of all running and waiting slots that one client may hold, even while no other client is
    there.

    This bounds the latency of accepted requests: at most ``limit + waiting`` others are ahead of each, however many are sent.
    """

    def __init__(self, limit: int, waiting: int, wait_s: float, share: float) -> None:
        self._limit = limit
        self._max_waiting = waiting
        self._wait_s = wait_s
        self._max_held = max(1, int((limit + waiting) * share))
        self._queues: dict[bytes, deque[asyncio.Future[bool]]] = {}
        self._held: dict[bytes, int] = {}
        self._running: dict[bytes, int] = {}
        self.running = 0
        self.waiting = 0
        """Requests that wait for a slot."""

    def refusal(self, client: bytes) -> Refusal | None:
        """Why this client's next request is refused without waiting; None when it may wait."""
        if self.running >= self._limit and self.waiting >= self._max_waiting and self._heavier(client) is None:
            return "full"
        return "share" if self._held.get(client, 0) >= self._max_held else None

    def take(self, client: bytes) -> bool:
        """Take a free slot, which must be released by ``leave``; False where none is free, or the client has its share already."""
        held = self._held.get(client, 0)
        if self.running >= self._limit or held >= self._max_held:
            return False
        self._held[client] = held + 1
        self.running += 1
        self._running[client] = self._running.get(client, 0) + 1
        return True

    async def enter(self, client: bytes) -> bool:
        """Wait for a slot, which must be released by ``leave``; False when none became free in time.

        To be called only where ``refusal`` returns None.
        """
        if self.take(client):
            return True
        self._held[client] = self._held.get(client, 0) + 1
        if self.waiting >= self._max_waiting:
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
        # Displaced by a client with fewer requests.
        self._release(self._held, client)
        return False

    def leave(self, client: bytes) -> None:
        """Release a slot: wake the longest waiter of the client with the fewest running requests."""
        self._release(self._held, client)
        self._release(self._running, client)
        while self._queues:
            # The dictionary keeps the order in which clients started to wait, and ``min`` returns the first of equals.
            next_client = min(self._queues, key=lambda waiting: self._running.get(waiting, 0))
            queue = self._queues.pop(next_client)
            turn = queue.popleft()
            self.waiting -= 1
            if queue:
                # The client goes to the end of that order.
                self._queues[next_client] = queue
            if not turn.done():
                self._running[next_client] = self._running.get(next_client, 0) + 1
                turn.set_result(True)
                return
        self.running -= 1

    def others(self, client: bytes) -> bool:
        """Whether another client has a running request."""
        return len(self._running) > (client in self._running)

    def _heavier(self, client: bytes) -> bytes | None:
        """The waiting client with the most requests, if it has more than this client would have with one more; else None."""
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
            # The slot became free at the same time: pass it on.
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
