"""Deletes the record of each video that had no engagement for ``retention_days``.

The record includes the video's ids, labels and positions in ranked lists. The video's entries in the bank stay, because they are past
knowledge, like the data that a bundle was trained on. To remove them too, delete the video. Parked rows and event ids expire by
themselves.

A sorted set holds the time of each video's next check. The first time is set when the video is registered, and new rows do not change it.
If a due video had rows in the meantime, the video becomes due again ``retention_days`` after its newest row. Because of the sorted set,
the store need not be scanned to find due videos. Only one slow scan runs every ``_WALK_EVERY_S`` seconds, to find videos that were
registered while no retention was configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from model.engagement.bins import SECOND_US
from service.background import BackgroundTask
from service.forecasts.engine import Engine
from service.metrics import Metrics
from service.problems import Problem, Unavailable
from service.quality.label_store import LabelStore
from service.settings import RecordSettings
from service.store import keys
from service.store.redis.connection import Command, RedisConnection
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

DAY_S: Final = 86_400
_EVERY_S: Final = 1.0
_BATCH: Final = 100
_PAUSE_S: Final = 0.1
_CHUNK: Final = 1000
_LEASE_S: Final = 30.0
_WALK_EVERY_S: Final = 7 * DAY_S


class Retention(BackgroundTask):
    """Deletes records as the retention setting requires. A lease ensures that only one replica at a time does so."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        label_store: LabelStore,
        redis: RedisConnection,
        settings: RecordSettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._engine, self._store, self._label_store, self._redis = engine, store, label_store, redis
        self._metrics, self._clock = metrics, clock
        self._kept_us = settings.retention_days * DAY_S * SECOND_US
        self._lease = Lease(redis, keys.RETENTION_LEASE, _LEASE_S)
        self._cursor: str | None = None

    async def run_once(self) -> int:
        """Check a batch of videos that are due. Return the number of these videos."""
        if not await self._lease.acquire():
            return 0
        await self._walk()
        now_us = self._clock()
        query: Command = ["ZRANGE", keys.RETENTION, "-inf", now_us // SECOND_US, "BYSCORE", "LIMIT", 0, _BATCH]
        found = (await self._redis.pipeline("retention", [query]))[0]
        due = [name for member in found if (name := keys.member(member)) is not None]
        commands: list[Command] = [["ZREM", keys.RETENTION, member] for member in found if keys.member(member) is None]
        for name, snapshot in (await self._store.read_many(dict.fromkeys(due))).items() if due else ():
            if snapshot is None:
                # The video was deleted, or its removal by retention was interrupted.
                await self._store.unlist(name)
                await self._label_store.forget(name)
                continue
            # A damaged record is checked again after a day, because it may have been repaired.
            again_us = now_us + DAY_S * SECOND_US
            if isinstance(snapshot, Snapshot):
                again_us = max(snapshot.newest_us or 0, snapshot.registered_us) + self._kept_us
                if again_us <= now_us:
                    await self._end(name, now_us - self._kept_us)
                    continue
            commands.append(["ZADD", keys.RETENTION, "XX", again_us // SECOND_US + 1, name])
        if commands:
            await self._redis.pipeline("retention", commands)
        return len(found)

    async def _end(self, video_id: str, before_us: int) -> None:
        # If a row arrives in the meantime, the video is kept, because the store checks again before it deletes, and the video stays due.
        if await self._store.forget(video_id, idle_since_us=before_us):
            await self._label_store.forget(video_id)
            await self._engine.forget(video_id)
            self._metrics.videos_ended.inc()

    async def _walk(self) -> None:
        """Continue the scan of the whole store, if one is due or in progress."""
        if self._cursor is None:
            if (await self._redis.pipeline("retention", [["EXISTS", keys.RETENTION_SEEDED]]))[0]:
                return
            self._cursor = ""
        self._cursor, found = await self._redis.scan("retention", self._cursor, keys.EVERY_META, _CHUNK)
        names = [name for key in found if (name := keys.video_id_of(key)) is not None]
        if names:
            flat = [part for name in names for part in (0, name)]
            await self._redis.pipeline("retention", [["ZADD", keys.RETENTION, "NX", *flat]])
        if not self._cursor:
            self._cursor = None
            await self._redis.pipeline("retention", [["SET", keys.RETENTION_SEEDED, 1, "EX", _WALK_EVERY_S]])

    async def _ended(self) -> None:
        with suppress(Unavailable):
            await self._lease.release()

    async def _run(self) -> None:
        while True:
            checked = 0
            try:
                checked = await self.run_once()
            except Problem as problem:
                log.warning("retention is delayed", reason=problem.detail)
            except Exception:
                log.exception("retention failed")
            walking = self._cursor is not None
            await asyncio.sleep(_PAUSE_S if checked == _BATCH or walking else _EVERY_S)
