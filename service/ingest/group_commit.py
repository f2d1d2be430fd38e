"""Group commit: batches that wait together go to the store together."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import Final

from service.ingest.parking import Parking
from service.problems import Unavailable, separate
from service.store.row import Outcome
from service.store.row_batch import RowBatch
from service.store.store import Store

Batch = tuple[RowBatch, asyncio.Future[Outcome], bool]
"""Rows, who waits for them, and whether they may be parked."""
ROUNDS: Final = 2
"""Rounds under way at most: one is being packed or read while the server works on the other."""


class GroupCommitQueue:
    """Queues batches of at most ``queue_rows`` rows in all; a round takes what waits, up to about ``round_rows``, of each client in turn.

    Rows of a client that has used up its share of ``parking`` are parked no more: such batches have rounds of their own.
    """

    def __init__(self, store: Store, *, round_rows: int, queue_rows: int, parking: Parking | None = None) -> None:
        self._store, self._parking = store, parking
        self._round_rows, self._queue_rows = round_rows, queue_rows
        self._waiting: dict[bytes, deque[Batch]] = {}
        self._rounds: set[asyncio.Task[None]] = set()
        self.waiting_rows = 0
        """Rows that no round has taken yet."""

    async def write(self, batch: RowBatch, client: bytes = b"") -> Outcome:
        """Store a batch of a client; returns after the server has acknowledged it.

        Raises Unavailable when the server does not answer, or when too many rows are waiting: nothing was stored then.
        """
        if self.waiting_rows and self.waiting_rows + len(batch) > self._queue_rows:
            raise Unavailable(
                "too many rows are waiting for the event store", part="store", allowed=self._queue_rows, unknown=0
            )
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        park = self._parking is None or self._parking.allows(client)
        self._waiting.setdefault(client, deque()).append((batch, done, park))
        self.waiting_rows += len(batch)
        self._begin()
        outcome = await done
        if outcome.parked_videos and self._parking is not None:
            self._parking.parked(client, outcome.parked_videos)
        return outcome

    def _begin(self) -> None:
        while self._waiting and len(self._rounds) < ROUNDS:
            # Many requests' rows are in it: it is logged as none of theirs.
            task = asyncio.get_running_loop().create_task(self._round(), context=Context())
            self._rounds.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._begin()

    def _take(self) -> list[Batch]:
        """Batches for a round: one of each client, then another, those first that have waited while others were served."""
        taken: list[Batch] = []
        rows, full, skipped = 0, False, set[bytes]()
        while not full and len(skipped) < len(self._waiting):
            for client in [client for client in self._waiting if client not in skipped]:
                batch, done, park = self._waiting[client][0]
                if taken and park != taken[0][2]:
                    skipped.add(client)
                    continue
                if taken and rows + len(batch) > self._round_rows:
                    full = True
                    break
                queue = self._waiting.pop(client)
                queue.popleft()
                if queue:
                    self._waiting[client] = queue
                self.waiting_rows -= len(batch)
                # Whoever went away before the round began wants nothing stored.
                if not done.done():
                    taken.append((batch, done, park))
                    rows += len(batch)
        return taken

    async def _round(self) -> None:
        taken = self._take()
        if not taken:
            return
        try:
            batches = [batch for batch, _, _ in taken]
            outcomes = await (self._store.ingest(batches) if taken[0][2] else self._store.ingest(batches, park=False))
        except BaseException as error:
            for _, done, _ in taken:
                if not done.done():
                    done.set_exception(separate(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, done, _), outcome in zip(taken, outcomes, strict=True):
            if done.done():
                continue
            if isinstance(outcome, Exception):
                done.set_exception(separate(outcome))
            else:
                done.set_result(outcome)
