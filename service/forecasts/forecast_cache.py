"""Answers given a moment ago, which are still right, and those that are being made."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from model.lru_cache import LRUCache
from service.deployment.deployment import Deployment
from service.forecasts.answer import Answer
from service.store.snapshot import Snapshot

SHARE_OF_AGE: Final = 1e-3
"""An answer serves again while its video has grown older by less than this share of its age."""

Key = tuple[str, tuple[int, ...], int | None]
"""Video id, horizons in microseconds, and the time asked for, None for now."""


class _Given(NamedTuple):
    task: asyncio.Task[Answer]
    snapshot: Snapshot
    deployment: Deployment
    given_us: int
    until_us: int


class ForecastCache:
    """The newest ``capacity`` answers, each for at most ``reuse_us``; who asks while one is made waits for that one.

    An answer is given again only for the version of the video and the deployment that it was made from, so a new row, a new model or
    another horizon always gets a new one.
    """

    def __init__(self, capacity: int, reuse_us: int) -> None:
        self._reuse_us = reuse_us
        self._given: LRUCache[Key, _Given] = LRUCache(capacity)
        self.hits = 0

    def find(self, key: Key, snapshot: Snapshot, deployment: Deployment, clock_us: int) -> asyncio.Task[Answer] | None:
        """The answer to give again, made or in the making, if there is one."""
        given = self._given.peek(key)
        if (
            given is None
            or given.snapshot.version != snapshot.version
            or given.deployment is not deployment
            or not given.given_us <= clock_us < given.until_us
            or (given.task.done() and (given.task.cancelled() or given.task.exception() is not None))
        ):
            return None
        self.hits += 1
        return given.task

    def clear(self) -> None:
        """Forget everything."""
        self._given.clear()

    def keep(
        self, key: Key, task: asyncio.Task[Answer], snapshot: Snapshot, deployment: Deployment, clock_us: int
    ) -> None:
        """Remember an answer asked for at ``clock_us``."""
        age_us = clock_us - snapshot.video.published_us
        until_us = clock_us + min(self._reuse_us, int(age_us * SHARE_OF_AGE))
        if until_us > clock_us:
            self._given.put(key, _Given(task, snapshot, deployment, clock_us, until_us))
