"""Cache of recent forecasts, both finished and in progress."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from model.lru_cache import LRUCache
from service.deployment.deployment import Deployment
from service.forecasts.forecast_result import ForecastResult
from service.store.snapshot import Snapshot

SHARE_OF_AGE: Final = 1e-3
"""Time for which a forecast is served from the cache, as a fraction of its video's age."""

Key = tuple[str, tuple[int, ...], int | None, tuple[float, ...], tuple[str, ...]]
"""Video id, horizons in microseconds, requested time (None: now), thresholds, and metrics (none: the bundle's first one)."""


class _Entry(NamedTuple):
    task: asyncio.Task[ForecastResult]
    snapshot: Snapshot
    deployment: Deployment
    added_us: int
    expires_us: int


class ForecastCache:
    """Holds at most ``capacity`` recent forecasts, each for at most ``reuse_us``.

    While a forecast is in progress, equal requests share it.

    A cached forecast is valid only for the video's version and the deployment that it was made with. Therefore a new row, a different
    model, a different horizon, threshold or metric always causes a new forecast.
    """

    def __init__(self, capacity: int, reuse_us: int) -> None:
        self._reuse_us = reuse_us
        self._entries: LRUCache[Key, _Entry] = LRUCache(capacity)
        self.hits = 0

    def find(
        self, key: Key, snapshot: Snapshot, deployment: Deployment, clock_us: int
    ) -> asyncio.Task[ForecastResult] | None:
        """Return the cached forecast, finished or in progress, or None if there is no valid one."""
        entry = self._entries.peek(key)
        if (
            entry is None
            or entry.snapshot.version != snapshot.version
            or entry.deployment is not deployment
            or not entry.added_us <= clock_us < entry.expires_us
            or (entry.task.done() and (entry.task.cancelled() or entry.task.exception() is not None))
        ):
            return None
        self.hits += 1
        return entry.task

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()

    def keep(
        self, key: Key, task: asyncio.Task[ForecastResult], snapshot: Snapshot, deployment: Deployment, clock_us: int
    ) -> None:
        """Add a forecast that was requested at ``clock_us``."""
        age_us = clock_us - snapshot.video.published_us
        expires_us = clock_us + min(self._reuse_us, int(age_us * SHARE_OF_AGE))
        if expires_us > clock_us:
            self._entries.put(key, _Entry(task, snapshot, deployment, clock_us, expires_us))
