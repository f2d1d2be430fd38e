"""Which videos rise: lists kept in the store, by forecasts that yield to those somebody waits for.

A video's place is looked at again when it changed, and after a tenth of its silence; so a video costs less the longer it
is silent, and nothing once it has left the list of what rises. Any number of replicas share the work through one sorted
set of what is due: who takes a video moves it into the future, and a replica that dies only delays it.

    views      count of the metric now
    expected   median forecast of that count at the horizon
    rising     log2 of (expected + 100) / (views + 100): growth in doublings; the 100 keeps handfuls from leading
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

from service.background import Running
from service.forecasts.answer import Answer
from service.forecasts.engine import Engine
from service.metrics import gauge
from service.problems import DamagedRecord, NotFound, Problem
from service.settings import RankingSettings
from service.store import keys
from service.store.change_publisher import Change, unlist_commands
from service.store.redis.connection import Command, RedisConnection

log = structlog.get_logger(__name__)

PRIOR: Final = 100
"""Engagements added on both sides of the growth."""
REFRESH_S: Final = 60
"""Seconds until a video is looked at again without a change, at least."""
TITLE_LENGTH: Final = 200
"""Characters of a title that a list shows."""
_SHARE_OF_SILENCE: Final = 0.1
_CLAIM_S: Final = 30
_ROUND: Final = 8
_DUE_A_LISTED: Final = 10
"""Videos waiting to be looked at for each place in a list, at most."""
_CHUNK: Final = 1000
_REMEMBERED: Final = 100_000
_US: Final = 1_000_000


class Ranking(Running):
    """Follows changes and keeps the lists."""

    def __init__(self, engine: Engine, link: RedisConnection, settings: RankingSettings) -> None:
        self._engine, self._link = engine, link
        self._horizon_us = settings.ranking_horizon_s * _US
        self._rate, self._silent_s = settings.ranking_forecasts, settings.ranking_silent_s
        self._most = settings.ranking_videos
        self._changed: dict[str, int] = {}
        self._told_at = -math.inf
        self._refreshed_s: float | None = None
        self._due_s: float | None = None

    def readings(self) -> Sequence[Metric]:
        """How old the lists are; absent while not known."""
        now_s, found = time.time(), []
        if self._refreshed_s is not None:
            text = "Time since a video's place in the lists was looked at, by any replica"
            found.append(gauge("m3tr_list_age_seconds", text, max(0.0, now_s - self._refreshed_s)))
        if self._told_at > -math.inf:
            late_s = 0.0 if self._due_s is None else max(0.0, now_s - self._due_s)
            text = "How long the video that waits longest has been due to be looked at for the lists"
            found.append(gauge("m3tr_list_overdue_seconds", text, late_s))
        return found

    def changed(self, changes: Sequence[Change]) -> None:
        """Note what changed. Past what can be remembered, a video waits for its next change."""
        for video_id, version in changes:
            if version and (video_id in self._changed or len(self._changed) < _REMEMBERED):
                self._changed[video_id] = version

    def missed(self) -> None:
        """Nothing to do: what changed again is noted then, and what is listed is looked at in its turn."""

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, done = loop.time(), 0
            try:
                if began - self._told_at >= 1:
                    await self._tell_changes()
                    self._told_at = began
                if self._engine.batcher.waiting == 0:
                    done = await self._round()
            except Problem as problem:
                log.warning("the lists wait", reason=problem.detail)
            except Exception:
                log.exception("the lists could not be kept")
                await asyncio.sleep(1)
            await asyncio.sleep(max(0.0, began + (done / self._rate if done else 1) - loop.time()))

    async def _tell_changes(self) -> None:
        changed, self._changed = self._changed, {}
        try:
            due, now_s = list(changed), time.time()
            commands: list[Command] = []
            for start in range(0, len(due), _CHUNK):
                # LT: whoever waits longest stays first.
                flat = [part for video_id in due[start : start + _CHUNK] for part in (now_s, video_id)]
                commands.append(["ZADD", keys.RANK_DUE, "LT", *flat])
            commands += [["GET", keys.RANK_AT], ["ZRANGE", keys.RANK_DUE, 0, 0, "WITHSCORES"]]
            *_, refreshed, first = await self._link.pipeline("rank", commands)
            self._refreshed_s = None if refreshed is None else float(refreshed)
            self._due_s = scored(first)[0][1] if first else None
        except Problem:
            self._changed = changed | self._changed
            raise

    async def _round(self) -> int:
        """Look at the videos that have been due longest; how many."""
        now_s = time.time()
        most = min(_ROUND, self._rate)
        due = (
            await self._link.pipeline("rank", [["ZRANGE", keys.RANK_DUE, "-inf", now_s, "BYSCORE", "LIMIT", 0, most]])
        )[0]
        if strange := [name for name in due if keys.member(name) is None]:
            await self._link.pipeline("rank", unlist_commands(strange))
            due = [name for name in due if keys.member(name) is not None]
        if not due:
            return 0
        claim = now_s + _CLAIM_S
        taken = ["ZADD", keys.RANK_DUE, "XX", "GT", *(part for name in due for part in (claim, name))]
        await self._link.pipeline("rank", [taken])
        horizons_us = (min(self._horizon_us, self._engine.active.forecaster.manifest.max_horizon_us),)
        answers = await asyncio.gather(
            *(self._engine.forecast(name.decode(), None, horizons_us) for name in due), return_exceptions=True
        )
        commands: list[Command] = []
        # Who was told to be due again meanwhile has changed again, and stays due.
        still = (await self._link.pipeline("rank", [["ZMSCORE", keys.RANK_DUE, *due]]))[0]
        for name, score, answer in zip(due, still, answers, strict=True):
            if isinstance(answer, NotFound | DamagedRecord):
                commands += unlist_commands([name])
            elif isinstance(answer, BaseException):
                # Its claim runs out, and it is due again.
                log.warning("a listed video could not be forecast", error=repr(answer))
            elif not answer.stale:
                commands += self._place(name, answer, unchanged=score is not None and float(score) >= claim)
        if commands:
            await self._link.pipeline("rank", [*commands, ["SET", keys.RANK_AT, time.time()]])
            if gone := await self._gone(due):
                await self._link.pipeline("rank", unlist_commands(gone))
            await self._trim()
        return len(due)

    async def _gone(self, names: Sequence[bytes]) -> list[bytes]:
        """Those that were deleted while their place was found: they must not stay."""
        found = await asyncio.gather(*(self._engine.exists(name.decode()) for name in names))
        return [name for name, there in zip(names, found, strict=True) if not there]

    def _place(self, name: bytes, answer: Answer, *, unchanged: bool) -> list[Command]:
        made = answer.forecast
        expected = float(made.quantiles[0, 1])
        row = {
            "title": (answer.snapshot.video.title or "")[:TITLE_LENGTH] or None,
            "counts": made.counts,
            "value_now": made.value_now,
            "expected": expected,
            "horizon_us": made.horizons_us[0],
            "as_of_us": made.now_us,
        }
        commands: list[Command] = [
            ["ZADD", keys.rank("views"), made.value_now, name],
            ["ZADD", keys.rank("expected"), expected, name],
            ["HSET", keys.RANK_ROWS, name, orjson.dumps(row)],
        ]
        if made.state_age_s > self._silent_s:
            commands.append(["ZREM", keys.rank("rising"), name])
            if unchanged:
                commands.append(["ZREM", keys.RANK_DUE, name])
            return commands
        growth = math.log2((expected + PRIOR) / (made.value_now + PRIOR))
        commands.append(["ZADD", keys.rank("rising"), growth, name])
        if unchanged:
            due = time.time() + max(REFRESH_S, _SHARE_OF_SILENCE * made.state_age_s)
            commands.append(["ZADD", keys.RANK_DUE, "XX", due, name])
        return commands

    async def _trim(self) -> None:
        sets = [keys.rank(sort) for sort in keys.SORTS]
        *sizes, waiting = await self._link.pipeline("rank", [["ZCARD", key] for key in (*sets, keys.RANK_DUE)])
        over: list[Command] = [
            ["ZPOPMIN", key, size - self._most] for key, size in zip(sets, sizes, strict=True) if size > self._most
        ]
        excess = waiting - _DUE_A_LISTED * self._most
        if excess > 0:
            over.append(["ZPOPMAX", keys.RANK_DUE, excess])
        if not over:
            return
        replies = await self._link.pipeline("rank", over)
        if excess > 0 and (unwatched := members(replies[-1])):
            # Nobody looks at these again before they change, so they must not stay on top with an old score.
            await self._link.pipeline("rank", [["ZREM", keys.rank("rising"), *unwatched]])
        dropped = sorted({name for reply in replies for name in members(reply)})
        found = await self._link.pipeline("rank", [["ZMSCORE", key, *dropped] for key in sets])
        gone = [name for name, *scores in zip(dropped, *found, strict=True) if all(s is None for s in scores)]
        if gone:
            await self._link.pipeline("rank", unlist_commands(gone))


def members(reply: Sequence[Any]) -> list[bytes]:
    """Members of a reply with scores."""
    return [member for member, _ in scored(reply)]


def scored(reply: Sequence[Any]) -> list[tuple[bytes, float]]:
    """(member, score) of a reply with scores, flat or in pairs."""
    if reply and isinstance(reply[0], bytes):
        return [(reply[i], float(reply[i + 1])) for i in range(0, len(reply), 2)]
    return [(member, float(score)) for member, score in reply]
