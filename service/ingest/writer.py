"""Group commit: batches that wait together go to the store together."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from service.problems import Unavailable, separate
from service.store.columns import Columns
from service.store.row import Outcome
from service.store.store import Store

ROUNDS: Final = 2
"""Rounds under way at most: one is being packed or read while the server works on the other."""


class Writer:
    """Queues batches of at most ``queue_rows`` rows in all; a round takes what waits, up to about ``round_rows``."""

    def __init__(self, store: Store, *, round_rows: int, queue_rows: int) -> None:
        self._store = store
        self._round_rows, self._queue_rows = round_rows, queue_rows
        self._waiting: deque[tuple[Columns, asyncio.Future[Outcome]]] = deque()
        self._rounds: set[asyncio.Task[None]] = set()
        self.waiting_rows = 0
        """Rows that no round has taken yet."""

    async def write(self, batch: Columns) -> Outcome:
        """Store a batch; returns after the server has acknowledged it.

        Raises Unavailable when the server does not answer, or when too many rows are waiting: nothing was stored then.
        """
        if self.waiting_rows and self.waiting_rows + len(batch) > self._queue_rows:
            raise Unavailable(
                "too many rows are waiting for the event store", part="store", allowed=self._queue_rows, unknown=0
            )
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, done))
        self.waiting_rows += len(batch)
        self._begin()
        return await done

    def _begin(self) -> None:
        while self._waiting and len(self._rounds) < ROUNDS:
            task = asyncio.get_running_loop().create_task(self._round())
            self._rounds.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._begin()

    def _take(self) -> list[tuple[Columns, asyncio.Future[Outcome]]]:
        taken: list[tuple[Columns, asyncio.Future[Outcome]]] = []
        rows = 0
        while self._waiting and (not taken or rows + len(self._waiting[0][0]) <= self._round_rows):
            batch, done = self._waiting.popleft()
            self.waiting_rows -= len(batch)
            # Whoever went away before the round began wants nothing stored.
            if not done.done():
                taken.append((batch, done))
                rows += len(batch)
        return taken

    async def _round(self) -> None:
        taken = self._take()
        if not taken:
            return
        try:
            outcomes = await self._store.ingest([batch for batch, _ in taken])
        except BaseException as error:
            for _, done in taken:
                if not done.done():
                    done.set_exception(separate(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, done), outcome in zip(taken, outcomes, strict=True):
            if done.done():
                continue
            if isinstance(outcome, Exception):
                done.set_exception(separate(outcome))
            else:
                done.set_result(outcome)
