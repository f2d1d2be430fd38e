"""Whose work goes on in the event loop, which all clients share.

Whoever has much to do asks for a turn before each piece of it: a request before it begins, a long body before each slice.

    first turn in a pass of the loop   at once
    further turns in it                at once, as long as this client has worked less than ``SLICE_S`` in it
    more                               in a queue of its own; each client's next one goes on in the next pass

Requests of a client that is alone wait for none; slices of long bodies do, so that whoever comes is not behind all of them.

A client with a queue, of requests or of a long body, rests while a forecast of another is under way, at most ``REST`` times as long as
it worked: what computes that one, in another thread, and the store that it waits for would otherwise share the processor with
everything that is queued.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

SLICE_S: Final = 0.001
"""Seconds that one client may keep the loop for in one pass."""
REST: Final = 4.0
"""Seconds of rest after each second of work, at most; so a fifth of the loop is left to who has a queue."""
LATELY_S: Final = 5.0
"""Seconds for which a client that had a turn is there."""
ROWS: Final = b"\0rows"
"""Whose turns are those that rows of several clients are stored in together."""
_BATCHES: Final = 2
"""Batches of long bodies that one client has under way at most, on however many connections."""
_LOOK_S: Final = 0.001
"""Seconds after which it is looked whether a rest is over; timers are no finer."""


class Turns:
    """Queues of those who wait, by client. ``others`` says whether a forecast of anybody else is under way."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        others: Callable[[bytes], bool] = lambda client: False,
    ) -> None:
        self.others = others
        self._clock = clock
        self._began: dict[bytes, float] = {}
        """When each client's first turn in this pass was."""
        self._resting: dict[bytes, float] = {}
        """Until when a client rests, at most."""
        self._queues: dict[bytes, deque[asyncio.Future[None]]] = {}
        self._batches: WeakValueDictionary[bytes, asyncio.Semaphore] = WeakValueDictionary()
        self._last = ROWS
        self._last_s = self._crowded_until_s = float("-inf")
        self._long: Counter[bytes] = Counter()
        """Slices of long bodies that wait."""
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def crowded(self) -> bool:
        """Whether several clients are there."""
        return self._clock() < self._crowded_until_s

    def free(self, client: bytes) -> bool:
        """Take a turn for a request; False where it must be waited for, which is never while no other client is there."""
        now_s = self._clock()
        if client != self._last:
            if now_s < self._last_s + LATELY_S:
                self._crowded_until_s = now_s + LATELY_S
            self._last = client
        self._last_s = now_s
        return now_s >= self._crowded_until_s or self._at_once(client)

    async def wait(self, client: bytes) -> None:
        """Wait for a turn that was not free."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        await turn

    async def take(self, client: bytes) -> None:
        """Take a turn for a slice of something long."""
        if self._at_once(client):
            return
        self._long[client] += 1
        try:
            await self.wait(client)
        finally:
            self._long[client] -= 1
            if not self._long[client]:
                del self._long[client]

    def _at_once(self, client: bytes) -> bool:
        if client in self._queues or client in self._resting:
            return False
        began = self._began.get(client)
        if began is not None:
            return self._clock() - began < SLICE_S
        self._began[client] = self._clock()
        if not self._soon:
            self._pass_soon()
        return True

    @asynccontextmanager
    async def batch(self, client: bytes) -> AsyncIterator[None]:
        """Deal with one batch of a long body, once it is this client's turn."""
        places = self._batches.setdefault(client, asyncio.Semaphore(_BATCHES))
        async with places:
            await self.take(client)
            yield

    def _pass_soon(self) -> None:
        self._soon = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """Begin the next pass of the loop: wake the longest waiter of each client that does not rest."""
        self._soon, self._timer = False, None
        now_s = self._clock()
        for client, began in self._began.items() if self._queues else ():
            # Whoever has no more to do than one request is no burden.
            queued = len(self._queues.get(client, ()))
            if queued > (client not in self._long) and self.others(client):
                self._resting[client] = now_s + REST * (now_s - began)
        self._began.clear()
        for client, until_s in list(self._resting.items()):
            if until_s <= now_s or not self.others(client):
                del self._resting[client]
        for client in [client for client in self._queues if client not in self._resting]:
            queue = self._queues[client]
            while queue and client not in self._began:
                turn = queue.popleft()
                # One that was cancelled has gone.
                if not turn.done():
                    turn.set_result(None)
                    self._began[client] = now_s
            if not queue:
                del self._queues[client]
        if self._began:
            self._pass_soon()
        elif self._resting:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._pass)
