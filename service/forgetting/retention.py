"""Ends videos to which nothing has happened for ``retention_days``: their record, ids, labels and places in lists.

What a bank has learned of a grown video stays: it is past knowledge, as what a bundle was trained on, and whoever wants that to go
deletes the video. Parked rows and ids end by themselves.

When a video is to be looked at stands in a sorted set, from its registration on. A row does not touch that: a video that is due is
looked at, and comes again as long after its newest row. Nothing is scanned but for one slow walk every ``_SEEDED_S``, which finds
videos that were registered while no retention was set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from model.engagement.bins import SECOND_US
from service.background import Running
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
_SEEDED_S: Final = 7 * DAY_S


class Retention(Running):
    """One replica at a time does the work, by a lease."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        ledger: LabelStore,
        link: RedisConnection,
        settings: RecordSettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._engine, self._store, self._ledger, self._link = engine, store, ledger, link
        self._metrics, self._clock = metrics, clock
        self._kept_us = settings.retention_days * DAY_S * SECOND_US
        self._lease = Lease(link, keys.RETENTION_LEASE, _LEASE_S)
        self._place: str | None = None

    async def round(self) -> int:
        """Look at some videos that are due; how many."""
        if not await self._lease.take():
            return 0
        await self._seed()
        now_us = self._clock()
        ask: Command = ["ZRANGE", keys.RETENTION, "-inf", now_us // SECOND_US, "BYSCORE", "LIMIT", 0, _BATCH]
        found = (await self._link.pipeline("retention", [ask]))[0]
        due = [name for member in found if (name := keys.member(member)) is not None]
        commands: list[Command] = [["ZREM", keys.RETENTION, member] for member in found if keys.member(member) is None]
        for name, snapshot in (await self._store.read_many(dict.fromkeys(due))).items() if due else ():
            if snapshot is None:
                # Deleted, or ended by one who could not finish.
                await self._store.unlist(name)
                await self._ledger.forget(name)
                continue
            # One that cannot be read is looked at again: somebody may mend it.
            again_us = now_us + DAY_S * SECOND_US
            if isinstance(snapshot, Snapshot):
                again_us = max(snapshot.newest_us or 0, snapshot.registered_us) + self._kept_us
                if again_us <= now_us:
                    await self._end(name, now_us - self._kept_us)
                    continue
            commands.append(["ZADD", keys.RETENTION, "XX", again_us // SECOND_US + 1, name])
        if commands:
            await self._link.pipeline("retention", commands)
        return len(found)

    async def _end(self, video_id: str, before_us: int) -> None:
        # A row that comes meanwhile keeps it: the store looks again when it deletes, and it stays due.
        if await self._store.forget(video_id, idle_since_us=before_us):
            await self._ledger.forget(video_id)
            await self._engine.forget(video_id)
            self._metrics.videos_ended.inc()

    async def _seed(self) -> None:
        """Go on through all that the store has, where that is due."""
        if self._place is None:
            if (await self._link.pipeline("retention", [["EXISTS", keys.RETENTION_SEEDED]]))[0]:
                return
            self._place = ""
        self._place, found = await self._link.scan("retention", self._place, keys.EVERY_META, _CHUNK)
        names = [name for key in found if (name := keys.video_id_of(key)) is not None]
        if names:
            flat = [part for name in names for part in (0, name)]
            await self._link.pipeline("retention", [["ZADD", keys.RETENTION, "NX", *flat]])
        if not self._place:
            self._place = None
            await self._link.pipeline("retention", [["SET", keys.RETENTION_SEEDED, 1, "EX", _SEEDED_S]])

    async def _ended(self) -> None:
        with suppress(Unavailable):
            await self._lease.give()

    async def _run(self) -> None:
        while True:
            looked = 0
            try:
                looked = await self.round()
            except Problem as problem:
                log.warning("retention waits", reason=problem.detail)
            except Exception:
                log.exception("old videos could not be ended")
            seeding = self._place is not None
            await asyncio.sleep(_PAUSE_S if looked == _BATCH or seeding else _EVERY_S)
