"""The newest known snapshot of each video: read again only when it changed, and still there when the store fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from model.lru_cache import LRUCache
from service.problems import Unavailable, separate
from service.store.quarantine import Damaged
from service.store.snapshot import Snapshot
from service.store.store import Store

Read = asyncio.Future[tuple[Snapshot | None, bool]]
ROUNDS: Final = 2
"""Round trips under way at most."""


class SnapshotCache:
    """A read-through cache of ``capacity`` snapshots, the least recently asked for leaving first.

    Every ``get`` asks the store, so what any replica acknowledged before is seen; gets that meet in one turn of the loop,
    or while a round is under way, share the next round trip.
    """

    def __init__(self, store: Store, capacity: int) -> None:
        self._store = store
        self._known: LRUCache[str, Snapshot] = LRUCache(capacity)
        self._wanted: dict[str, list[Read]] = {}
        self._rounds: set[asyncio.Task[None]] = set()

    async def get(self, video_id: str) -> tuple[Snapshot | None, bool]:
        """The video (None: not registered), and whether it is stale because the store does not answer.

        Raises Unavailable when the store does not answer and the video was never seen here, and DamagedRecord where the
        video's record cannot be read.
        """
        loop = asyncio.get_running_loop()
        waiting: Read = loop.create_future()
        if not self._wanted and len(self._rounds) < ROUNDS:
            loop.call_soon(self._begin)
        self._wanted.setdefault(video_id, []).append(waiting)
        return await waiting

    def newest(self, limit: int) -> list[Snapshot]:
        """Of the videos asked for last, what was known then; at most ``limit``, the newest first."""
        return self._known.values()[::-1][:limit]

    def names(self) -> list[str]:
        """Every video that is known here."""
        return self._known.keys()

    def forget(self, video_id: str) -> None:
        """Drop a video that was deleted."""
        self._known.drop(video_id)

    def _begin(self) -> None:
        if self._wanted:
            wanted, self._wanted = self._wanted, {}
            task = asyncio.get_running_loop().create_task(self._round(wanted))
            self._rounds.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._begin()

    async def _round(self, wanted: dict[str, list[Read]]) -> None:
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
        held = self._known.peek(video_id)
        self._known.put(video_id, snapshot if held is None or held.version < snapshot.version else held)
