"""A concurrency limit for requests of one kind. Some requests run, a few wait for a short time, and the others are refused."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

Refusal = Literal["full", "late", "share"]
"""Why a request is refused.

``full``: all running and waiting slots are taken.
``late``: no slot became free in time.
``share``: the client already holds its share of the slots.
"""


class ConcurrencyLimit:
    """Lets up to ``limit`` requests run. Up to ``waiting`` requests wait for a slot, each for at most ``wait_s`` seconds.

    Slots are shared fairly. A free slot is given to the waiting client with the fewest running requests. If several clients have
    equally few, the slot goes to the client that has waited longest. If all waiting slots are taken, a new request
    takes the place of the newest waiting request of the client with the most requests. This happens only if that client has more
    requests than the new request's client, the new request counted.

    ``share``: fraction of all running and waiting slots that one client may hold, even if there is no other client.

    The limit bounds the latency of accepted requests. At most ``limit + waiting`` requests are ahead of an accepted request, no
    matter how many requests are sent.
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
        """Number of requests that wait for a slot."""

    def refusal(self, client: bytes) -> Refusal | None:
        """Return why this client's next request would be refused without waiting. Return None if the request may run or wait."""
        if self.running >= self._limit and self.waiting >= self._max_waiting and self._heavier(client) is None:
            return "full"
        return "share" if self._held.get(client, 0) >= self._max_held else None

    def take(self, client: bytes) -> bool:
        """Take a free slot. Return False if no slot is free, or if the client already holds its share of the slots.

        The slot must be released with ``leave``.
        """
        held = self._held.get(client, 0)
        if self.running >= self._limit or held >= self._max_held:
            return False
        self._held[client] = held + 1
        self.running += 1
        self._running[client] = self._running.get(client, 0) + 1
        return True

    async def enter(self, client: bytes) -> bool:
        """Take a slot, or wait for one. Return False if no slot became free in time, or if a different client displaced the request.

        The slot must be released with ``leave``. Call this only after ``refusal`` has returned None.
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
        # The request was displaced by a client with fewer requests.
        self._release(self._held, client)
        return False

    def leave(self, client: bytes) -> None:
        """Release a slot, and give it to the next waiting request.

        The next waiting request is the oldest one of the waiting client with the fewest running requests.
        """
        self._release(self._held, client)
        self._release(self._running, client)
        while self._queues:
            # The dictionary keeps the clients in the order of their waiting time. If several clients have equally few running
            # requests, ``min`` returns the one that has waited longest.
            next_client = min(self._queues, key=lambda waiting: self._running.get(waiting, 0))
            queue = self._queues.pop(next_client)
            turn = queue.popleft()
            self.waiting -= 1
            if queue:
                # The client goes to the end of the dictionary's order.
                self._queues[next_client] = queue
            if not turn.done():
                self._running[next_client] = self._running.get(next_client, 0) + 1
                turn.set_result(True)
                return
        self.running -= 1

    def others(self, client: bytes) -> bool:
        """Return whether a different client has a running request."""
        return len(self._running) > (client in self._running)

    def _heavier(self, client: bytes) -> bytes | None:
        """Return the waiting client with the most requests.

        Return None if no client waits, or if a further request would give ``client`` at least as many as that client has.
        """
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
            # The slot was given to this request at the same moment. The slot is passed on to the next request.
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
