"""Group commits: batches that wait at the same time are stored together."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import Final

from service.ingest.parking import Parking
from service.problems import Unavailable, separate
from service.store.rows.outcome import Outcome
from service.store.rows.row_batch import RowBatch
from service.store.store import Store

WaitingBatch = tuple[RowBatch, asyncio.Future[Outcome], bool]
"""A batch of rows, the future that its sender awaits, and whether the rows may be parked."""
COMMITS_IN_FLIGHT: Final = 2
"""Maximum number of commits at the same time. While the store works on one commit, this service prepares or finishes the
other one."""


class GroupCommitQueue:
    """A queue of batches with up to ``queue_rows`` rows in total.

    A commit takes waiting batches with up to about ``commit_rows`` rows. The batches are taken from the clients in turn. If a client
    has used up its share of ``parking``, the client's rows may not be parked. Such rows are stored in separate commits.
    """

    def __init__(self, store: Store, *, commit_rows: int, queue_rows: int, parking: Parking | None = None) -> None:
        self._store, self._parking = store, parking
        self._commit_rows, self._queue_rows = commit_rows, queue_rows
        self._waiting: dict[bytes, deque[WaitingBatch]] = {}
        self._commits: set[asyncio.Task[None]] = set()
        self.waiting_rows = 0
        """Number of rows that no commit has taken yet."""

    async def write(self, batch: RowBatch, client: bytes = b"") -> Outcome:
        """Store a client's batch. Return its outcome after the server has acknowledged it.

        Raises:
            Unavailable: if the server does not answer, or if too many rows are waiting. In the second case, nothing was stored.
        """
        if self.waiting_rows and self.waiting_rows + len(batch) > self._queue_rows:
            raise Unavailable(
                "too many rows are waiting for the event store", part="store", allowed=self._queue_rows, unknown=0
            )
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        park = self._parking is None or self._parking.allows(client)
        self._waiting.setdefault(client, deque()).append((batch, done, park))
        self.waiting_rows += len(batch)
        self._start_commits()
        outcome = await done
        if outcome.parked_videos and self._parking is not None:
            self._parking.parked(client, outcome.parked_videos)
        return outcome

    def _start_commits(self) -> None:
        while self._waiting and len(self._commits) < COMMITS_IN_FLIGHT:
            # The context is empty, because a commit has rows of many requests. The commit's log lines must not name one request.
            task = asyncio.get_running_loop().create_task(self._commit(), context=Context())
            self._commits.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        self._start_commits()

    def _take(self) -> list[WaitingBatch]:
        """Take the batches of the next commit: one from each client, then a second one from each, and so on.

        Clients are visited in turn, starting with the one that was served longest ago.
        """
        taken: list[WaitingBatch] = []
        rows, full, skipped = 0, False, set[bytes]()
        while not full and len(skipped) < len(self._waiting):
            for client in [client for client in self._waiting if client not in skipped]:
                batch, done, park = self._waiting[client][0]
                if taken and park != taken[0][2]:
                    skipped.add(client)
                    continue
                if taken and rows + len(batch) > self._commit_rows:
                    full = True
                    break
                queue = self._waiting.pop(client)
                queue.popleft()
                if queue:
                    self._waiting[client] = queue
                self.waiting_rows -= len(batch)
                # If the sender has disconnected in the meantime, its rows are not stored.
                if not done.done():
                    taken.append((batch, done, park))
                    rows += len(batch)
        return taken

    async def _commit(self) -> None:
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
