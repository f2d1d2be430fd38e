"""Admits videos to the bank as they grow older, so that the bank grows with the traffic.

A video is first admitted at the age ``bank_after_s``, and again whenever its age has doubled. Each time, the video's entries in the bank
are made from everything known about the video at that time. When the video is older than the longest growth curve, the video is no longer
admitted.

The event store holds a schedule for each bank, as a sorted set. An embedded bank belongs to one service, and only that service fills it. A
bank on a server is shared by all replicas. A lease ensures that only one replica at a time fills the shared bank.

"Now" means the clock's time, but at most ``SILENCE_US`` after the newest row. Without this limit, videos would seem to get no engagement
during a replay of past rows or a pause of all traffic.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from model.bundle import BANK
from model.engagement.bins import HOUR_US, SECOND_US
from model.errors import M3TRError
from model.growth.curve_kernels import CURVE_EDGES_US
from model.lru_cache import LRUCache
from service.background import BackgroundTask
from service.bank.entries import bank_entries
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.metrics import Metrics
from service.problems import Problem
from service.settings import BankSettings
from service.store import keys
from service.store.change_publisher import Change
from service.store.redis.connection import Command, RedisConnection
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

_EVERY_S: Final = 1.0
_BATCH: Final = 8
_CHUNK: Final = 1000
_SCANS: Final = 10
"""Maximum number of scan steps in one pass, each over ``_CHUNK`` keys, while the whole store is being scanned."""
_REMEMBERED: Final = 100_000
_AGAIN_S: Final = 60
"""Seconds until a failed admission is tried again."""
_LEASE_S: Final = 30
_KEPT_S: Final = 30 * 86_400
"""Time in seconds for which the schedule of an unused bank is kept."""
_RENEW_EVERY_S: Final = 600
SILENCE_US: Final = HOUR_US
_OLDEST_US: Final = int(CURVE_EDGES_US[-1])


class BankAdmission(BackgroundTask):
    """Watches the change stream, schedules new videos, and admits the videos that are due."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        redis: RedisConnection,
        settings: BankSettings,
        metrics: Metrics,
        clock: Callable[[], int],
        *,
        bundle: Path,
    ) -> None:
        self._engine, self._store, self._redis = engine, store, redis
        self._metrics, self._clock = metrics, clock
        self._after_s, self._limit, self._rate = settings.bank_after_s, settings.bank_videos, settings.bank_entries
        self._bank_name, self._shared = bank_name(settings, bundle), settings.qdrant_url is not None
        self._new: set[str] = set()
        self._latest: str | None = None
        self._front_us = 0
        self._known: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self._walked = ""
        self._cursor: str | None = None
        self._leases: dict[str, Lease] = {}
        self._renewed = ("", 0.0)

    def changed(self, changes: Sequence[Change]) -> None:
        """Remember new videos, to schedule them later. Deleted videos are noticed when they are due."""
        for video_id, version in changes:
            if not version:
                continue
            self._latest = video_id
            if video_id not in self._known and len(self._new) < _REMEMBERED:
                self._new.add(video_id)

    def missed(self) -> None:
        """Scan the whole store again, because changes may have been missed."""
        self._walked = ""

    async def _ended(self) -> None:
        # Release the leases, so that a different replica can continue at once.
        for lease in self._leases.values():
            await lease.release()

    async def run_once(self) -> int:
        """Schedule new videos, and admit a batch of videos that are due. Return the number of due videos."""
        deployment = self._engine.active
        key = keys.maturing(f"{self._bank_name}-{deployment.version[:16]}")
        await self._renew(key)
        await self._walk(key)
        await self._schedule_new(key)
        if self._shared and not await self._lease(key).acquire():
            return 0
        now_us = await self._now_us()
        found = await self._redis.pipeline(
            "maturing", [["ZRANGE", key, "-inf", now_us // SECOND_US, "BYSCORE", "LIMIT", 0, _BATCH]]
        )
        due = [it for name in found[0] if (it := keys.member(name)) is not None]
        if len(due) < len(found[0]):
            await self._redis.pipeline("maturing", [["ZREM", key, *(n for n in found[0] if keys.member(n) is None)]])
        if due:
            await self._admit(deployment, key, due, now_us)
        return len(due)

    async def _renew(self, key: str) -> None:
        """Record every ten minutes that this bank is in use, because the schedule of an unused bank expires."""
        if key == self._renewed[0] and time.monotonic() < self._renewed[1] + _RENEW_EVERY_S:
            return
        now_s = int(time.time())
        if not (await self._redis.pipeline("maturing", [["ZCARD", keys.MATURING]]))[0]:
            await self._find_banks(now_s)
        commands: list[Command] = [
            ["ZADD", keys.MATURING, now_s, key],
            ["ZREMRANGEBYSCORE", keys.MATURING, "-inf", now_s - _KEPT_S],
            ["EXPIRE", key, _KEPT_S],
        ]
        await self._redis.pipeline("maturing", commands)
        self._renewed = key, time.monotonic()

    async def _find_banks(self, now_s: int) -> None:
        """Register schedules that an earlier release left unregistered, so that unused schedules expire."""
        cursor: str | None = ""
        while cursor is not None:
            following, found = await self._redis.scan("maturing", cursor, keys.maturing("*"), _CHUNK)
            for key in found:
                commands: list[Command] = [["ZADD", keys.MATURING, "NX", now_s, key], ["EXPIRE", key, _KEPT_S, "NX"]]
                await self._redis.pipeline("maturing", commands)
            cursor = following or None

    async def _now_us(self) -> int:
        name, self._latest = self._latest, None
        snapshot = (await self._store.read_many({name: None}))[name] if name is not None else None
        if isinstance(snapshot, Snapshot):
            self._front_us = max(self._front_us, snapshot.newest_us or 0)
        return min(self._clock(), self._front_us + SILENCE_US)

    async def _walk(self, key: str) -> None:
        """Continue the scan of the whole store, if one is in progress."""
        if self._walked != key:
            self._walked, self._cursor = key, ""
        for _ in range(_SCANS):
            if self._cursor is None:
                return
            cursor, found = await self._redis.scan("maturing", self._cursor, keys.EVERY_META, _CHUNK)
            if found:
                await self._schedule(key, [it for name in found if (it := keys.video_id_of(name)) is not None])
            self._cursor = cursor or None

    async def _schedule_new(self, key: str) -> None:
        names = list(self._new)
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            await self._schedule(key, chunk)
            self._new.difference_update(chunk)
            for name in chunk:
                self._known.put(name, None)

    async def _schedule(self, key: str, names: Sequence[str]) -> None:
        flat = [part for name in names for part in (0, name)]
        await self._redis.pipeline("maturing", [["ZADD", key, "NX", *flat]])

    async def _admit(self, deployment: Deployment, key: str, due: Sequence[str], now_us: int) -> None:
        snapshots = await self._store.read_many(dict.fromkeys(due))
        ready: list[Snapshot] = []
        next_s: dict[str, int] = {}
        gone: list[str] = []
        for name, snapshot in snapshots.items():
            if not isinstance(snapshot, Snapshot):
                # A video with a damaged record is scheduled again when it is registered again.
                gone.append(name)
                continue
            age_s = (now_us - snapshot.video.published_us) // SECOND_US
            if age_s >= self._after_s:
                ready.append(snapshot)
            if age_s * SECOND_US >= _OLDEST_US:
                gone.append(name)
            else:
                next_age_s = self._after_s if age_s < self._after_s else 2 * age_s
                next_s[name] = snapshot.video.published_us // SECOND_US + next_age_s
        # A video without rows is skipped. The video may have had no engagement, or its engagement may not have been sent.
        admitted = [snapshot for snapshot in ready if snapshot.newest_us is not None]
        self._metrics.bank_entries.labels("empty").inc(len(ready) - len(admitted))
        try:
            await self._upsert(deployment, admitted, now_us)
        except M3TRError as error:
            log.warning("videos could not be admitted to the bank", error=str(error), videos=len(admitted))
            self._metrics.bank_entries.labels("failed").inc(len(admitted))
            later = now_us // SECOND_US + _AGAIN_S
            next_s |= {snapshot.video.video_id: later for snapshot in admitted}
            gone = [name for name in gone if name not in next_s]
        except Exception:
            log.exception("videos could not be admitted to the bank together; trying one by one", videos=len(admitted))
            gone += [
                video_id for video_id in await self._one_by_one(deployment, admitted, now_us) if video_id in next_s
            ]
            next_s = {name: at for name, at in next_s.items() if name not in gone}
        commands: list[Command] = []
        if next_s:
            commands.append(["ZADD", key, "XX", *(part for name, at in next_s.items() for part in (at, name))])
        if gone:
            commands.append(["ZREM", key, *gone])
        await self._redis.pipeline("maturing", commands)

    async def _one_by_one(self, deployment: Deployment, snapshots: Sequence[Snapshot], now_us: int) -> Sequence[str]:
        """Admit the videos one at a time. Return the ids of the videos that cannot be admitted."""
        refused: list[str] = []
        for snapshot in snapshots:
            try:
                await self._upsert(deployment, [snapshot], now_us)
            except Problem:
                raise
            except Exception as error:
                log.warning(
                    "a video cannot be admitted to the bank", video_id=snapshot.video.video_id, error=repr(error)
                )
                self._metrics.bank_entries.labels("failed").inc()
                refused.append(snapshot.video.video_id)
        return refused

    async def _upsert(self, deployment: Deployment, snapshots: Sequence[Snapshot], now_us: int) -> None:
        if not snapshots:
            return
        if (await asyncio.to_thread(deployment.bank.counts))["videos"] >= self._limit:
            self._metrics.bank_entries.labels("full").inc(len(snapshots))
            return
        forecaster, videos = deployment.forecaster, [snapshot.video for snapshot in snapshots]
        found: list[NDArray[np.float32]] = []
        # Only the model's thread may use the content cache.
        await self._engine.batcher.between(lambda: found.append(forecaster.content(videos)))
        entries = await asyncio.to_thread(bank_entries, forecaster, snapshots, found[0], now_us)
        await asyncio.to_thread(deployment.bank.upsert, entries)
        self._metrics.bank_entries.labels("entered").inc(len(entries))
        # A video that was deleted in the meantime must not stay in the bank.
        still = await self._store.read_many({snapshot.video.video_id: snapshot for snapshot in snapshots})
        since = {snapshot.video.video_id: snapshot.registered_us for snapshot in snapshots}
        if gone := [
            name
            for name, found_now in still.items()
            if found_now is None or (isinstance(found_now, Snapshot) and found_now.registered_us != since[name])
        ]:
            await asyncio.to_thread(deployment.bank.remove, gone)

    def _lease(self, key: str) -> Lease:
        return self._leases.setdefault(key, Lease(self._redis, f"{key}:lease", _LEASE_S))

    async def _run(self) -> None:
        while True:
            due = 0
            try:
                due = await self.run_once()
            except Problem as problem:
                log.warning("admission to the bank is delayed", reason=problem.detail)
            except Exception:
                log.exception("videos could not be admitted to the bank")
            await asyncio.sleep(max(_EVERY_S if not due else 0.0, due / self._rate))


def bank_name(settings: BankSettings, bundle: Path) -> str:
    """Return the name of a bank.

    The name of a shared bank is "server". The name of an embedded bank is a digest of its folder and of the time when it was filled.
    """
    if settings.qdrant_url is not None:
        return "server"
    marker = bundle.resolve() / BANK / "bank.json"
    filled = marker.stat().st_mtime_ns if marker.exists() else 0
    text = f"{uuid.getnode()} {marker} {filled}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
