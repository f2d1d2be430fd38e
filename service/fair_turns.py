"""Shares the event loop fairly between clients.

A "turn" is the permission to run one request, or one slice of a long request body, on the event loop. A request takes a turn once, at its
start. A long body takes a turn before each slice. A "pass" is one iteration of the event loop.

    first turn of a client in a pass   granted at once
    further turns in the same pass     granted at once, until the client has worked for ``SLICE_S`` in this pass
    turns after that                   put in the client's queue; each pass grants one queued turn per client

While only one client is active, its requests do not wait. Slices of its long bodies do wait, so that a new request is not queued behind
all slices.

A client with a queue is paused while a forecast of a different client is in progress. The pause lasts at most ``REST`` times as long as
the client worked in the pass. Without the pause, the queued work would compete for the processor with the thread that computes the
forecast, and with the store.
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
"""Time in seconds for which one client may use the event loop in one pass."""
REST: Final = 4.0
"""Maximum pause in seconds per second of work. With 4, a client with a queue still gets a fifth of the event loop's time."""
LATELY_S: Final = 5.0
"""Time in seconds after its last turn for which a client counts as active."""
ROWS: Final = b"\0rows"
"""Client name used by group commits, because a group commit stores rows of several clients."""
_BATCHES: Final = 2
"""Maximum number of long-body batches in progress per client, over all its connections."""
_POLL_S: Final = 0.001
"""Seconds between two checks of whether a pause is over. Timers have no finer resolution."""


class Turns:
    """Queues of waiting work, one per client.

    ``others(client)`` returns whether a forecast of a different client is in progress.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        others: Callable[[bytes], bool] = lambda client: False,
    ) -> None:
        self.others = others
        self._clock = clock
        self._began: dict[bytes, float] = {}
        """Time of each client's first turn in this pass."""
        self._resting: dict[bytes, float] = {}
        """Latest time at which each paused client's pause ends."""
        self._queues: dict[bytes, deque[asyncio.Future[None]]] = {}
        self._batches: WeakValueDictionary[bytes, asyncio.Semaphore] = WeakValueDictionary()
        self._last = ROWS
        self._last_s = self._crowded_until_s = float("-inf")
        self._long: Counter[bytes] = Counter()
        """Number of waiting slices of long bodies, keyed by client."""
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def crowded(self) -> bool:
        """Whether several clients are active."""
        return self._clock() < self._crowded_until_s

    def free(self, client: bytes) -> bool:
        """Take a turn for a request. Return False if the request must wait. A request never waits while only one client is active."""
        now_s = self._clock()
        if client != self._last:
            if now_s < self._last_s + LATELY_S:
                self._crowded_until_s = now_s + LATELY_S
            self._last = client
        self._last_s = now_s
        return now_s >= self._crowded_until_s or self._at_once(client)

    async def wait(self, client: bytes) -> None:
        """Wait for a turn after ``free`` returned False."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        await turn

    async def take(self, client: bytes) -> None:
        """Take a turn for a slice of a long body. Wait for the turn if necessary."""
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
        """Enter the context when this client gets a turn for one batch of a long request body."""
        slots = self._batches.setdefault(client, asyncio.Semaphore(_BATCHES))
        async with slots:
            await self.take(client)
            yield

    def _pass_soon(self) -> None:
        self._soon = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """Begin the next pass. Grant the oldest turn in the queue of each client that is not paused."""
        self._soon, self._timer = False, None
        now_s = self._clock()
        for client, began in self._began.items() if self._queues else ():
            # A client with only one queued request is not paused.
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
                # Skip turns whose caller was cancelled.
                if not turn.done():
                    turn.set_result(None)
                    self._began[client] = now_s
            if not queue:
                del self._queues[client]
        if self._began:
            self._pass_soon()
        elif self._resting:
            self._timer = asyncio.get_running_loop().call_later(_POLL_S, self._pass)
