"""Videos enter the bank as they grow up, so that it grows with the traffic.

A video enters at an age (``bank_after_s``) and again whenever its age has doubled, each time with all that is known of it by
then, until no curve reaches further. When it is due stands in the event store, a sorted set a bank: an embedded bank belongs
to one service, which alone fills it; a server's bank is shared, and one replica at a time fills it, by a lease.

Now is the time up to which the traffic has come, at most ``SILENCE_US`` past its newest row: while the past is sent again, or
nothing comes at all, silence does not mean that nothing happens.
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
from service.background import Running
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
"""Looks at ``_CHUNK`` keys in one round, while going through the whole store."""
_REMEMBERED: Final = 100_000
_AGAIN_S: Final = 60
"""Seconds until a video is tried again whose entry failed."""
_LEASE_S: Final = 30
_KEPT_S: Final = 30 * 86_400
"""Seconds for which the schedule of a bank that nobody has open is kept."""
_KEEP_EVERY_S: Final = 600
SILENCE_US: Final = HOUR_US
_OLDEST_US: Final = int(CURVE_EDGES_US[-1])


class BankAdmission(Running):
    """A listener to changes that notes new videos, and a task that enters those whose time has come."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        link: RedisConnection,
        settings: BankSettings,
        metrics: Metrics,
        clock: Callable[[], int],
        *,
        bundle: Path,
    ) -> None:
        self._engine, self._store, self._link = engine, store, link
        self._metrics, self._clock = metrics, clock
        self._after_s, self._most, self._rate = settings.bank_after_s, settings.bank_videos, settings.bank_entries
        self._bank_name, self._shared = bank_name(settings, bundle), settings.qdrant_url is not None
        self._new: set[str] = set()
        self._latest: str | None = None
        self._front_us = 0
        self._known: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self._seeded = ""
        self._cursor: str | None = None
        self._leases: dict[str, Lease] = {}
        self._kept = ("", 0.0)

    def changed(self, changes: Sequence[Change]) -> None:
        """Note videos that are new here. Deleted ones are found out when they are due."""
        for video_id, version in changes:
            if not version:
                continue
            self._latest = video_id
            if video_id not in self._known and len(self._new) < _REMEMBERED:
                self._new.add(video_id)

    def missed(self) -> None:
        """Look through all there is."""
        self._seeded = ""

    async def _ended(self) -> None:
        # Another replica goes on at once.
        for lease in self._leases.values():
            await lease.give()

    async def round(self) -> int:
        """Note new videos and enter some that are due; how many were looked at."""
        deployment = self._engine.active
        key = keys.maturing(f"{self._bank_name}-{deployment.version[:16]}")
        await self._keep(key)
        await self._seed(key)
        await self._note(key)
        if self._shared and not await self._lease(key).take():
            return 0
        now_us = await self._now_us()
        found = await self._link.pipeline(
            "maturing", [["ZRANGE", key, "-inf", now_us // SECOND_US, "BYSCORE", "LIMIT", 0, _BATCH]]
        )
        due = [it for name in found[0] if (it := keys.member(name)) is not None]
        if len(due) < len(found[0]):
            await self._link.pipeline("maturing", [["ZREM", key, *(n for n in found[0] if keys.member(n) is None)]])
        if due:
            await self._enter(deployment, key, due, now_us)
        return len(due)

    async def _keep(self, key: str) -> None:
        """Note, now and then, that this bank is in use; what is kept for one that is not ends by itself."""
        if key == self._kept[0] and time.monotonic() < self._kept[1] + _KEEP_EVERY_S:
            return
        now_s = int(time.time())
        if not (await self._link.pipeline("maturing", [["ZCARD", keys.MATURING]]))[0]:
            await self._find_banks(now_s)
        commands: list[Command] = [
            ["ZADD", keys.MATURING, now_s, key],
            ["ZREMRANGEBYSCORE", keys.MATURING, "-inf", now_s - _KEPT_S],
            ["EXPIRE", key, _KEPT_S],
        ]
        await self._link.pipeline("maturing", commands)
        self._kept = key, time.monotonic()

    async def _find_banks(self, now_s: int) -> None:
        """Note the banks of a release that noted none; those that nobody uses any more end by themselves."""
        place: str | None = ""
        while place is not None:
            following, found = await self._link.scan("maturing", place, keys.maturing("*"), _CHUNK)
            for key in found:
                commands: list[Command] = [["ZADD", keys.MATURING, "NX", now_s, key], ["EXPIRE", key, _KEPT_S, "NX"]]
                await self._link.pipeline("maturing", commands)
            place = following or None

    async def _now_us(self) -> int:
        name, self._latest = self._latest, None
        snapshot = (await self._store.read_many({name: None}))[name] if name is not None else None
        if isinstance(snapshot, Snapshot):
            self._front_us = max(self._front_us, snapshot.newest_us or 0)
        return min(self._clock(), self._front_us + SILENCE_US)

    async def _seed(self, key: str) -> None:
        """Go on through all that the store has, where that was begun."""
        if self._seeded != key:
            self._seeded, self._cursor = key, ""
        for _ in range(_SCANS):
            if self._cursor is None:
                return
            place, found = await self._link.scan("maturing", self._cursor, keys.EVERY_META, _CHUNK)
            if found:
                await self._schedule(key, [it for name in found if (it := keys.video_id_of(name)) is not None])
            self._cursor = place or None

    async def _note(self, key: str) -> None:
        names = list(self._new)
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            await self._schedule(key, chunk)
            self._new.difference_update(chunk)
            for name in chunk:
                self._known.put(name, None)

    async def _schedule(self, key: str, names: Sequence[str]) -> None:
        flat = [part for name in names for part in (0, name)]
        await self._link.pipeline("maturing", [["ZADD", key, "NX", *flat]])

    async def _enter(self, deployment: Deployment, key: str, due: Sequence[str], now_us: int) -> None:
        snapshots = await self._store.read_many(dict.fromkeys(due))
        ready: list[Snapshot] = []
        next_s: dict[str, int] = {}
        gone: list[str] = []
        for name, snapshot in snapshots.items():
            if not isinstance(snapshot, Snapshot):
                # One that cannot be read comes back when it is registered anew.
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
        # An entry needs a row: without any, nobody knows whether silence means that nothing happened.
        entered = [snapshot for snapshot in ready if snapshot.newest_us is not None]
        self._metrics.bank_entries.labels("empty").inc(len(ready) - len(entered))
        try:
            await self._upsert(deployment, entered, now_us)
        except M3TRError as error:
            log.warning("videos could not enter the bank", error=str(error), videos=len(entered))
            self._metrics.bank_entries.labels("failed").inc(len(entered))
            later = now_us // SECOND_US + _AGAIN_S
            next_s |= {snapshot.video.video_id: later for snapshot in entered}
            gone = [name for name in gone if name not in next_s]
        except Exception:
            log.exception("videos could not enter the bank together; now one by one", videos=len(entered))
            gone += [video_id for video_id in await self._one_by_one(deployment, entered, now_us) if video_id in next_s]
            next_s = {name: at for name, at in next_s.items() if name not in gone}
        commands: list[Command] = []
        if next_s:
            commands.append(["ZADD", key, "XX", *(part for name, at in next_s.items() for part in (at, name))])
        if gone:
            commands.append(["ZREM", key, *gone])
        await self._link.pipeline("maturing", commands)

    async def _one_by_one(self, deployment: Deployment, snapshots: Sequence[Snapshot], now_us: int) -> Sequence[str]:
        """Enter each on its own; those of which no entry can be made."""
        refused: list[str] = []
        for snapshot in snapshots:
            try:
                await self._upsert(deployment, [snapshot], now_us)
            except Problem:
                raise
            except Exception as error:
                log.warning("a video cannot enter the bank", video_id=snapshot.video.video_id, error=repr(error))
                self._metrics.bank_entries.labels("failed").inc()
                refused.append(snapshot.video.video_id)
        return refused

    async def _upsert(self, deployment: Deployment, snapshots: Sequence[Snapshot], now_us: int) -> None:
        if not snapshots:
            return
        if (await asyncio.to_thread(deployment.bank.counts))["videos"] >= self._most:
            self._metrics.bank_entries.labels("full").inc(len(snapshots))
            return
        forecaster, videos = deployment.forecaster, [snapshot.video for snapshot in snapshots]
        found: list[NDArray[np.float32]] = []
        # The thread that forecasts is the only one that uses the content cache.
        await self._engine.batcher.between(lambda: found.append(forecaster.content(videos)))
        made = await asyncio.to_thread(bank_entries, forecaster, snapshots, found[0], now_us)
        await asyncio.to_thread(deployment.bank.upsert, made)
        self._metrics.bank_entries.labels("entered").inc(len(made))
        # Deleted while its entry was made: it must not stay.
        still = await self._store.read_many({snapshot.video.video_id: snapshot for snapshot in snapshots})
        since = {snapshot.video.video_id: snapshot.registered_us for snapshot in snapshots}
        if gone := [
            name
            for name, found_now in still.items()
            if found_now is None or (isinstance(found_now, Snapshot) and found_now.registered_us != since[name])
        ]:
            await asyncio.to_thread(deployment.bank.remove, gone)

    def _lease(self, key: str) -> Lease:
        return self._leases.setdefault(key, Lease(self._link, f"{key}:lease", _LEASE_S))

    async def _run(self) -> None:
        while True:
            looked = 0
            try:
                looked = await self.round()
            except Problem as problem:
                log.warning("the bank waits", reason=problem.detail)
            except Exception:
                log.exception("videos could not enter the bank")
            await asyncio.sleep(max(_EVERY_S if not looked else 0.0, looked / self._rate))


def bank_name(settings: BankSettings, bundle: Path) -> str:
    """Which bank it is: all that share a server share one; an embedded one is that of a folder, until it is filled anew."""
    if settings.qdrant_url is not None:
        return "server"
    marker = bundle.resolve() / BANK / "bank.json"
    filled = marker.stat().st_mtime_ns if marker.exists() else 0
    text = f"{uuid.getnode()} {marker} {filled}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
