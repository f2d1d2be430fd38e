"""A cache of snapshots. A video is parsed again only if it changed. Cached videos can be served even when the store fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from model.lru_cache import LRUCache
from service.problems import Unavailable, separate
from service.store.quarantine import Damaged
from service.store.snapshot import Snapshot
from service.store.store import Store

Waiting = asyncio.Future[tuple[Snapshot | None, bool]]
READS_IN_FLIGHT: Final = 2
"""Maximum number of round trips to the store at the same time."""


class SnapshotCache:
    """A read-through cache of ``capacity`` snapshots. The least recently used snapshot is evicted first.

    Every ``get`` asks the store, so it sees all rows that any replica has acknowledged before. Calls of ``get`` in the same pass of
    the event loop share one round trip. Calls that are made while ``READS_IN_FLIGHT`` round trips are under way share the next
    round trip.
    """

    def __init__(self, store: Store, capacity: int) -> None:
        self._store = store
        self._known: LRUCache[str, Snapshot] = LRUCache(capacity)
        self._wanted: dict[str, list[Waiting]] = {}
        self._reads: set[asyncio.Task[None]] = set()

    async def get(self, video_id: str) -> tuple[Snapshot | None, bool]:
        """Return the video's snapshot, and whether the snapshot is stale because the store does not answer.

        The snapshot is None if the video is not registered.

        Raises:
            Unavailable: if the store does not answer, and the video is not in the cache.
            DamagedRecord: if the video's record cannot be read.
        """
        loop = asyncio.get_running_loop()
        waiting: Waiting = loop.create_future()
        if not self._wanted and len(self._reads) < READS_IN_FLIGHT:
            loop.call_soon(self._start_read)
        self._wanted.setdefault(video_id, []).append(waiting)
        return await waiting

    def newest(self, limit: int) -> list[Snapshot]:
        """Return the cached snapshots of the ``limit`` most recently used videos, the most recent first."""
        return self._known.values()[::-1][:limit]

    def names(self) -> list[str]:
        """Return the id of every cached video."""
        return self._known.keys()

    def forget(self, video_id: str) -> None:
        """Remove a video that was deleted."""
        self._known.drop(video_id)

    def _start_read(self) -> None:
        if self._wanted:
            wanted, self._wanted = self._wanted, {}
            task = asyncio.get_running_loop().create_task(self._read(wanted))
            self._reads.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        self._start_read()

    async def _read(self, wanted: dict[str, list[Waiting]]) -> None:
        found: Mapping[str, Snapshot | Damaged | Unavailable | None]
        try:
            found = await self._store.read_some({video_id: self._known.peek(video_id) for video_id in wanted})
        except Unavailable as error:
            found = dict.fromkeys(wanted, error)
        except BaseException as error:
            for waiting in wanted.values():
                for future in waiting:
                    if not future.done():
                        future.set_exception(separate(error))
            raise
        for video_id, waiting in wanted.items():
            snapshot = found[video_id]
            known = self._known.peek(video_id)
            if not isinstance(snapshot, Unavailable):
                self._keep(video_id, None if isinstance(snapshot, Damaged) else snapshot)
            for future in waiting:
                if future.done():
                    continue
                if isinstance(snapshot, Damaged):
                    future.set_exception(snapshot.problem())
                elif not isinstance(snapshot, Unavailable):
                    future.set_result((snapshot, False))
                elif known is None:
                    future.set_exception(separate(snapshot))
                else:
                    future.set_result((known, True))

    def _keep(self, video_id: str, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            self.forget(video_id)
            return
        known = self._known.peek(video_id)
        self._known.put(video_id, snapshot if known is None or known.version < snapshot.version else known)
