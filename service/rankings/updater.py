"""Keeps the ranked lists in the store. The updater makes forecasts only while no client's forecast is queued.

A video is ranked again when it has changed, and also after a tenth of the time since its newest row. Therefore the longer a video has no
rows, the less work the video causes. Once a video has left the rising list, it causes no work until it changes. Any number of replicas
share the work through one sorted set of due videos. A replica that takes a video postpones the video in this set. If the replica dies, the
videos that it took are therefore only delayed.

    views      present count of the metric
    expected   median forecast of that count at the horizon
    rising     log2 of (expected + 100) / (views + 100), which is the growth in doublings; adding 100 keeps very small counts off the top

Each metric of the active bundle has these three lists.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import orjson
import structlog
from prometheus_client.core import Metric

from model.forecast import Forecast
from model.quantiles.head import MEDIAN
from service.background import BackgroundTask
from service.forecasts.engine import Engine
from service.forecasts.forecast_result import ForecastResult
from service.metrics import gauge
from service.problems import DamagedRecord, NotFound, Problem
from service.settings import RankingSettings
from service.store import keys
from service.store.change_publisher import Change, unlist_commands
from service.store.redis.connection import Command, RedisConnection

log = structlog.get_logger(__name__)

PRIOR: Final = 100
"""Number of engagements added to the present and the expected count when growth is computed."""
REFRESH_S: Final = 60
"""Minimum time in seconds until a video without a change is ranked again."""
TITLE_LENGTH: Final = 200
"""Maximum length of a title in a list, in characters."""
_SHARE_OF_SILENCE: Final = 0.1
_CLAIM_S: Final = 30
_BATCH: Final = 8
_DUE_PER_LISTED: Final = 10
"""Maximum number of videos that wait to be ranked, per position in a list."""
_CHUNK: Final = 1000
_REMEMBERED: Final = 100_000
_US: Final = 1_000_000


class RankingUpdater(BackgroundTask):
    """Watches the change stream and keeps the lists."""

    def __init__(self, engine: Engine, redis: RedisConnection, settings: RankingSettings) -> None:
        self._engine, self._redis = engine, redis
        self._horizon_us = settings.ranking_horizon_s * _US
        self._rate, self._silent_s = settings.ranking_forecasts, settings.ranking_silent_s
        self._limit = settings.ranking_videos
        self._changed: dict[str, int] = {}
        self._published_at = -math.inf
        self._refreshed_s: float | None = None
        self._due_s: float | None = None

    def readings(self) -> Sequence[Metric]:
        """Return the age of the lists and the delay of the ranking. Unknown values are left out."""
        now_s, found = time.time(), []
        if self._refreshed_s is not None:
            text = "Time since any replica ranked a video"
            found.append(gauge("m3tr_list_age_seconds", text, max(0.0, now_s - self._refreshed_s)))
        if self._published_at > -math.inf:
            late_s = 0.0 if self._due_s is None else max(0.0, now_s - self._due_s)
            text = "How long the most overdue video has been waiting to be ranked"
            found.append(gauge("m3tr_list_overdue_seconds", text, late_s))
        return found

    def changed(self, changes: Sequence[Change]) -> None:
        """Record changed videos. If too many are recorded already, a further video is recorded at its next change."""
        for video_id, version in changes:
            if version and (video_id in self._changed or len(self._changed) < _REMEMBERED):
                self._changed[video_id] = version

    def missed(self) -> None:
        """Do nothing, because a missed video is recorded at its next change, and listed videos are ranked again when due."""

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, done = loop.time(), 0
            try:
                if began - self._published_at >= 1:
                    await self._schedule_changed()
                    self._published_at = began
                if self._engine.batcher.waiting == 0:
                    done = await self._run_once()
            except Problem as problem:
                log.warning("the ranking of videos is delayed", reason=problem.detail)
            except Exception:
                log.exception("the ranking of videos failed")
                await asyncio.sleep(1)
            await asyncio.sleep(max(0.0, began + (done / self._rate if done else 1) - loop.time()))

    async def _schedule_changed(self) -> None:
        changed, self._changed = self._changed, {}
        try:
            due, now_s = list(changed), time.time()
            commands: list[Command] = []
            for start in range(0, len(due), _CHUNK):
                # LT keeps the earlier of two due times.
                flat = [part for video_id in due[start : start + _CHUNK] for part in (now_s, video_id)]
                commands.append(["ZADD", keys.RANK_DUE, "LT", *flat])
            commands += [["GET", keys.RANK_AT], ["ZRANGE", keys.RANK_DUE, 0, 0, "WITHSCORES"]]
            *_, refreshed, first = await self._redis.pipeline("rank", commands)
            self._refreshed_s = None if refreshed is None else float(refreshed)
            self._due_s = scored(first)[0][1] if first else None
        except Problem:
            self._changed = changed | self._changed
            raise

    async def _run_once(self) -> int:
        """Rank the most overdue videos. Return their number."""
        now_s = time.time()
        limit = min(_BATCH, self._rate)
        due = (
            await self._redis.pipeline("rank", [["ZRANGE", keys.RANK_DUE, "-inf", now_s, "BYSCORE", "LIMIT", 0, limit]])
        )[0]
        if invalid := [name for name in due if keys.member(name) is None]:
            await self._redis.pipeline("rank", unlist_commands(invalid))
            due = [name for name in due if keys.member(name) is not None]
        if not due:
            return 0
        claim = now_s + _CLAIM_S
        taken = ["ZADD", keys.RANK_DUE, "XX", "GT", *(part for name in due for part in (claim, name))]
        await self._redis.pipeline("rank", [taken])
        manifest = self._engine.active.forecaster.manifest
        horizons_us = (min(self._horizon_us, manifest.max_horizon_us),)
        metrics = manifest.metrics if len(manifest.metrics) > 1 else ()
        results = await asyncio.gather(
            *(self._engine.forecast(name.decode(), None, horizons_us, metrics=metrics) for name in due),
            return_exceptions=True,
        )
        commands: list[Command] = []
        # If a video's due time was lowered in the meantime, the video has changed again, and it stays due.
        still = (await self._redis.pipeline("rank", [["ZMSCORE", keys.RANK_DUE, *due]]))[0]
        for name, score, result in zip(due, still, results, strict=True):
            if isinstance(result, NotFound | DamagedRecord):
                commands += unlist_commands([name])
            elif isinstance(result, BaseException):
                # This replica's claim on the video expires, and then the video is due again.
                log.warning("a listed video could not be forecast", error=repr(result))
            elif not result.stale:
                commands += self._rank(name, result, unchanged=score is not None and float(score) >= claim)
        if commands:
            if metrics[1:]:
                # Before a video is added to a list, the list's name is known to whoever removes a video.
                commands.insert(0, ["SADD", keys.RANK_METRICS, *map(keys.ranked_metric, metrics[1:])])
            await self._redis.pipeline("rank", [*commands, ["SET", keys.RANK_AT, time.time()]])
            if deleted := await self._deleted(due):
                await self._redis.pipeline("rank", unlist_commands(deleted))
            await self._trim(metrics[1:])
        return len(due)

    async def _deleted(self, names: Sequence[bytes]) -> list[bytes]:
        """Return the videos that were deleted while they were ranked. Such videos must not stay in the lists."""
        found = await asyncio.gather(*(self._engine.exists(name.decode()) for name in names))
        return [name for name, exists in zip(names, found, strict=True) if not exists]

    def _rank(self, name: bytes, result: ForecastResult, *, unchanged: bool) -> list[Command]:
        forecast = result.forecast
        silent = forecast.state_age_s > self._silent_s
        row: dict[str, Any] = {
            "title": (result.snapshot.video.title or "")[:TITLE_LENGTH] or None,
            "counts": forecast.counts,
            **_values(forecast),
            "horizon_us": forecast.horizons_us[0],
            "as_of_us": forecast.now_us,
        }
        if result.further:
            row["further"] = {made.metric: _values(made) for made in result.further}
        commands: list[Command] = [["HSET", keys.RANK_ROWS, name, orjson.dumps(row)]]
        for made, further in ((forecast, None), *((made, made.metric) for made in result.further)):
            views, expected, rising = (
                keys.rank(keys.ranking(sort, further)) for sort in ("views", "expected", "rising")
            )
            median = float(made.quantiles[0, MEDIAN])
            commands += [["ZADD", views, made.value_now, name], ["ZADD", expected, median, name]]
            growth = math.log2((median + PRIOR) / (made.value_now + PRIOR))
            commands.append(["ZREM", rising, name] if silent else ["ZADD", rising, growth, name])
        if silent:
            if unchanged:
                commands.append(["ZREM", keys.RANK_DUE, name])
            return commands
        if unchanged:
            due = time.time() + max(REFRESH_S, _SHARE_OF_SILENCE * forecast.state_age_s)
            commands.append(["ZADD", keys.RANK_DUE, "XX", due, name])
        return commands

    async def _trim(self, further: Sequence[str]) -> None:
        sets = [keys.rank(keys.ranking(sort, metric)) for metric in (None, *further) for sort in keys.SORTS]
        *sizes, waiting = await self._redis.pipeline("rank", [["ZCARD", key] for key in (*sets, keys.RANK_DUE)])
        over: list[Command] = [
            ["ZPOPMIN", key, size - self._limit] for key, size in zip(sets, sizes, strict=True) if size > self._limit
        ]
        excess = waiting - _DUE_PER_LISTED * self._limit
        if excess > 0:
            over.append(["ZPOPMAX", keys.RANK_DUE, excess])
        if not over:
            return
        replies = await self._redis.pipeline("rank", over)
        if excess > 0 and (unwatched := members(replies[-1])):
            # These videos are ranked again only when they change. They must not stay at the top of the rising list with an old score.
            rising = [keys.rank(keys.ranking("rising", metric)) for metric in (None, *further)]
            await self._redis.pipeline("rank", [["ZREM", key, *unwatched] for key in rising])
        dropped = sorted({name for reply in replies for name in members(reply)})
        found = await self._redis.pipeline("rank", [["ZMSCORE", key, *dropped] for key in sets])
        gone = [name for name, *scores in zip(dropped, *found, strict=True) if all(s is None for s in scores)]
        if gone:
            await self._redis.pipeline("rank", unlist_commands(gone))


def _values(forecast: Forecast) -> dict[str, float]:
    """Return what a list's row holds of one metric."""
    return {
        "value_now": forecast.value_now,
        "expected": float(forecast.quantiles[0, MEDIAN]),
        "mean": float(forecast.mean[0]),
    }


def members(reply: Sequence[Any]) -> list[bytes]:
    """Return only the members from a reply that holds the members and scores of a sorted set."""
    return [member for member, _ in scored(reply)]


def scored(reply: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return (member, score) pairs from a reply. The reply is a flat list or a list of pairs."""
    if reply and isinstance(reply[0], bytes):
        return [(reply[i], float(reply[i + 1])) for i in range(0, len(reply), 2)]
    return [(member, float(score)) for member, score in reply]
