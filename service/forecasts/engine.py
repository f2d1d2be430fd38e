"""Computes forecasts. The engine takes a video's snapshot, drops the data after the requested time, and runs the model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from prometheus_client.core import Metric

from model.engagement.bins import HOUR_US, bin_end_us
from model.engagement.history import History, Readings, Series
from model.engagement.video import Video
from model.forecast import Forecast, Request
from service.deployment.deployment import Deployment
from service.forecasts.batcher import Batcher
from service.forecasts.forecast_cache import ForecastCache
from service.forecasts.forecast_result import ForecastResult
from service.metrics import Metrics, counter, gauge
from service.problems import Invalid, NotFound, Problem, Unavailable, separate
from service.settings import ForecastSettings
from service.store.snapshot import Snapshot
from service.store.snapshot_cache import SnapshotCache
from service.times import iso, now_us

_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    newest: bool
    """Whether ``history`` is the video's newest history. Only then may the forecast update the video's cached state."""
    deployment: Deployment
    """Deployment that makes the forecast, even if a different one becomes active in the meantime."""


def ended_by(history: History, age_us: int) -> History:
    """Return a history with only those bins that had ended when the video had the age ``age_us``."""

    def cut(series: Series) -> Series:
        kept = bin_end_us(series.bins) <= age_us
        return Series(series.mode, series.bins[kept], series.values[kept])

    reach = {index: value for index, value in history.reach.items() if int(bin_end_us(index)) <= age_us}

    def ended(readings: Readings) -> Readings:
        kept = bin_end_us(readings.bins) <= age_us
        return Readings(readings.bins[kept], readings.values[kept])

    signals = {name: ended(readings) for name, readings in history.signals.items()}
    return History({kind: cut(series) for kind, series in history.series.items()}, reach, signals)


class Engine:
    """Makes forecasts from histories in one worker thread. No other thread uses the cached states in the deployment's pool.

    ``active`` is the deployment that makes forecasts for new requests. ``switch`` may replace it at any time. A request keeps the
    deployment that was active when the request arrived.
    """

    def __init__(
        self,
        deployment: Deployment,
        snapshots: SnapshotCache,
        cache: ForecastCache,
        settings: ForecastSettings,
        metrics: Metrics,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.active = deployment
        self._snapshots, self.cache = snapshots, cache
        self._observers: list[Callable[[ForecastResult], None]] = []
        self._in_progress: Counter[Deployment] = Counter()
        self._idle_since_s = time.monotonic()
        self.made_s: float | None = None
        """Time of the newest forecast on the monotonic clock, or None before the first forecast."""
        self._test_video = Video("", clock())
        self._metrics = metrics
        self._clock = clock
        self._deadline_s = settings.request_deadline_ms / 1000
        self.batcher: Batcher[_Job, dict[str, Forecast]] = Batcher(
            self._compute,
            size=settings.batch_forecasts,
            wait_s=settings.batch_wait_ms / 1000,
            queue=settings.queue_forecasts,
            released=lambda reason: metrics.batches.labels(reason).inc(),
        )

    def on_forecast(self, observer: Callable[[ForecastResult], None]) -> None:
        """Call ``observer`` with every forecast that is made from a video's newest history. The observer must not block."""
        self._observers.append(observer)

    async def forecast(
        self,
        video_id: str,
        at_us: int | None,
        horizons_us: tuple[int, ...],
        thresholds: tuple[float, ...] = (),
        metrics: tuple[str, ...] = (),
    ) -> ForecastResult:
        """Forecast a registered video as of ``at_us`` (None: now), at horizons and for thresholds, both ascending.

        ``metrics`` are metrics of the active bundle. Without any, its first metric is forecast.
        """
        snapshot, stale = await self._snapshots.get(video_id)
        if snapshot is None:
            raise NotFound("this video is not registered", field="video_id", value=video_id)
        clock_us, deployment = self._clock(), self.active
        key = (video_id, horizons_us, at_us, thresholds, metrics)
        task = None if stale else self.cache.find(key, snapshot, deployment, clock_us)
        if task is None:
            job, as_of_bins = self._job(snapshot, deployment, clock_us, at_us, horizons_us, thresholds, metrics)
            # Run in a separate task, which continues for the other callers if the first caller disconnects.
            task = asyncio.get_running_loop().create_task(self._make(job, snapshot, as_of_bins, stale))
            self._in_progress[deployment] += 1
            task.add_done_callback(partial(self._made, deployment))
            if not stale:
                self.cache.keep(key, task, snapshot, deployment, clock_us)
        try:
            return task.result() if task.done() else await asyncio.shield(task)
        except Exception as error:
            # Other callers may wait for this forecast too, so each caller raises its own copy of the error.
            raise separate(error) from error

    @property
    def idle_s(self) -> float:
        """Seconds since the last forecast ended, or 0 while a forecast is in progress."""
        return 0.0 if self._in_progress else time.monotonic() - self._idle_since_s

    def switch(self, deployment: Deployment) -> Deployment:
        """Make a different deployment active for all new requests. Return the previous one."""
        before, self.active = self.active, deployment
        # The cached forecasts can no longer be served, and they keep the previous model in memory.
        self.cache.clear()
        return before

    async def try_model(self) -> None:
        """Make a forecast for an artificial video in the model's thread. Raise any error that the model raises."""
        forecaster, now_us = self.active.forecaster, max(self._clock(), self._test_video.published_us)
        horizons_us = (min(HOUR_US, forecaster.manifest.max_horizon_us),)
        request = Request(self._test_video, History({}), now_us, horizons_us)
        await self.batcher.between(lambda: forecaster.forecast([request]))

    async def drained(self, deployment: Deployment) -> None:
        """Wait until no forecast is in progress in a deployment that is no longer active."""
        while self._in_progress[deployment]:
            await asyncio.sleep(_POLL_S)
        # A batch may still run after its callers have disconnected.
        await self.batcher.between(lambda: None)

    def newest(self, limit: int, horizons_us: tuple[int, ...]) -> list[Request]:
        """Return forecast requests, as of now, for the ``limit`` most recently requested videos, the most recent first."""
        now_us, active = self._clock(), self.active
        return [
            self._job(snapshot, active, now_us, None, horizons_us)[0].request
            for snapshot in self._snapshots.newest(limit)
        ]

    async def exists(self, video_id: str) -> bool:
        """Return whether the video is registered. Return True if the store does not answer."""
        try:
            return (await self._snapshots.get(video_id))[0] is not None
        except Problem:
            return True

    async def forget(self, video_id: str) -> None:
        """Remove a deleted video from the caches. Drop all cached forecasts, because any of them may name the video as a neighbour."""
        self._snapshots.forget(video_id)
        self.cache.clear()
        await self.batcher.between(lambda: self.active.pool.forget(video_id))

    def cached(self) -> list[str]:
        """Return the ids of videos with a cached snapshot."""
        return self._snapshots.names()

    def readings(self) -> Sequence[Metric]:
        """Return metrics of the caches and the queue."""
        pool = self.active.pool
        return [
            gauge("m3tr_state_cache_used_slots", "Videos with a cached state", pool.used),
            gauge("m3tr_state_cache_capacity_slots", "Videos that can have a cached state", pool.capacity),
            counter("m3tr_forecasts_reused", "Forecasts served from the cache", self.cache.hits),
            gauge("m3tr_model_queue_forecasts", "Forecasts waiting for the model", self.batcher.waiting),
        ]

    def _job(
        self,
        snapshot: Snapshot,
        deployment: Deployment,
        clock_us: int,
        at_us: int | None,
        horizons_us: tuple[int, ...],
        thresholds: tuple[float, ...] = (),
        metrics: tuple[str, ...] = (),
    ) -> tuple[_Job, bool]:
        now = clock_us if at_us is None else at_us
        published_us = snapshot.video.published_us
        if now < published_us:
            if at_us is not None:
                raise Invalid("at", iso(now), f"published_at ({iso(published_us)}) or later")
            # This machine's clock is behind the client's, by less than the allowed skew. Use the publication time as the present time.
            now = published_us
        history, as_of_bins = snapshot.history, False
        if snapshot.newest_us is not None and now < snapshot.newest_us:
            if at_us is None:
                now = snapshot.newest_us
            else:
                history, as_of_bins = ended_by(history, now - published_us), True
        request = Request(snapshot.video, history, now, horizons_us, snapshot.client, thresholds, metrics)
        return _Job(request, not as_of_bins, deployment), as_of_bins

    async def _make(self, job: _Job, snapshot: Snapshot, as_of_bins: bool, stale: bool) -> ForecastResult:
        try:
            async with asyncio.timeout(self._deadline_s):
                forecasts = tuple((await self.batcher.submit(job)).values())
        except TimeoutError:
            raise Unavailable("the forecast missed its deadline", part="model") from None
        self.made_s = time.monotonic()
        if stale:
            forecasts = tuple(replace(made, degraded=[*made.degraded, "store"]) for made in forecasts)
        first, *further = forecasts
        self._count(first)
        result = ForecastResult(snapshot, first, job.deployment.version, as_of_bins, stale, further=tuple(further))
        for observer in self._observers if job.newest and not stale else ():
            observer(result)
        return result

    def _made(self, deployment: Deployment, task: asyncio.Task[ForecastResult]) -> None:
        self._in_progress[deployment] -= 1
        if not self._in_progress[deployment]:
            del self._in_progress[deployment]
            self._idle_since_s = time.monotonic()
        # Mark an error as retrieved, so that asyncio does not log it. Callers, if any, have already received it.
        if not task.cancelled():
            task.exception()

    def _count(self, forecast: Forecast) -> None:
        self._metrics.forecasts.labels("cold" if forecast.cold_start else "warm").inc()
        for part in forecast.degraded:
            self._metrics.degraded.labels(part).inc()

    def _compute(self, jobs: Sequence[_Job]) -> Sequence[dict[str, Forecast]]:
        self._metrics.batch_size.observe(len(jobs))
        groups: dict[tuple[Deployment, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault((job.deployment, job.newest), []).append(i)
        results: dict[int, dict[str, Forecast]] = {}
        for (deployment, newest), indices in groups.items():
            forecasts = deployment.forecaster.forecast_metrics(
                [jobs[i].request for i in indices],
                pool=deployment.pool if newest else None,
                stage=lambda name, seconds: self._metrics.model_seconds.labels(name).observe(seconds),
            )
            results.update(zip(indices, forecasts, strict=True))
        return [results[i] for i in range(len(jobs))]
