"""Forecasts: a video's snapshot, cut to the time asked for, through the model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from model.engagement.bins import HOUR_US, bin_end_us
from model.engagement.history import History, Series
from model.engagement.video import Video
from model.forecast import Forecast, Request
from service.deployment.deployment import Deployment
from service.forecasts.answer import Answer
from service.forecasts.batcher import Batcher
from service.forecasts.forecast_cache import ForecastCache
from service.metrics import Metrics
from service.problems import Invalid, NotFound, Problem, Unavailable, separate
from service.settings import ForecastSettings
from service.store.snapshot import Snapshot
from service.store.snapshot_cache import SnapshotCache
from service.times import iso, now_us

_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    live: bool
    """Whether the history is the video's newest, and so may move its cached state."""
    deployment: Deployment
    """Answers, also when another becomes active meanwhile."""


def ended_by(history: History, age_us: int) -> History:
    """The part of a history in bins that had ended at an age."""

    def cut(series: Series) -> Series:
        kept = bin_end_us(series.bins) <= age_us
        return Series(series.mode, series.bins[kept], series.values[kept])

    reach = {index: value for index, value in history.reach.items() if int(bin_end_us(index)) <= age_us}
    return History({kind: cut(series) for kind, series in history.series.items()}, reach)


class Engine:
    """Answers forecasts from histories through one worker thread, which alone touches the pool's states.

    ``active`` answers; ``switch`` may replace it at any time, a request stays with the one it met. ``observers`` are told
    every answer made from a video's newest history; they must not block.
    """

    def __init__(
        self,
        deployment: Deployment,
        histories: SnapshotCache,
        settings: ForecastSettings,
        metrics: Metrics,
        clock: Callable[[], int] = now_us,
        *,
        cache_videos: int,
    ) -> None:
        self.active = deployment
        self.deployments: Callable[[], Sequence[Deployment]] = lambda: [self.active]
        self.observers: list[Callable[[Answer], None]] = []
        self._histories = histories
        self._under_way: Counter[Deployment] = Counter()
        self._idle_since_s = time.monotonic()
        self.made_s: float | None = None
        """When the newest forecast was made, on the monotonic clock; None before the first."""
        self._nobody = Video("", clock())
        self._metrics = metrics
        self._clock = clock
        self._deadline_s = settings.request_deadline_ms / 1000
        self.recent = ForecastCache(cache_videos, settings.forecast_reuse_ms * 1000)
        self.batcher: Batcher[_Job, Forecast] = Batcher(
            self._compute,
            size=settings.batch_forecasts,
            wait_s=settings.batch_wait_ms / 1000,
            queue=settings.queue_forecasts,
            released=lambda reason: metrics.batches.labels(reason).inc(),
        )

    async def forecast(self, video_id: str, at_us: int | None, horizons_us: tuple[int, ...]) -> Answer:
        """Forecast a registered video as of ``at_us`` (None: now)."""
        snapshot, stale = await self._histories.get(video_id)
        if snapshot is None:
            raise NotFound("this video is not registered", field="video_id", value=video_id)
        clock_us, deployment = self._clock(), self.active
        key = (video_id, horizons_us, at_us)
        task = None if stale else self.recent.find(key, snapshot, deployment, clock_us)
        if task is None:
            job, as_of_bins = self._job(snapshot, deployment, clock_us, at_us, horizons_us)
            # A task of its own: it goes on for others when whoever asked first has gone.
            task = asyncio.get_running_loop().create_task(self._make(job, snapshot, as_of_bins, stale))
            self._under_way[deployment] += 1
            task.add_done_callback(partial(self._made, deployment))
            if not stale:
                self.recent.keep(key, task, snapshot, deployment, clock_us)
        try:
            return task.result() if task.done() else await asyncio.shield(task)
        except Exception as error:
            # Others may wait for the same forecast.
            raise separate(error) from error

    @property
    def idle_s(self) -> float:
        """Seconds for which no forecast has been under way, 0 while one is."""
        return 0.0 if self._under_way else time.monotonic() - self._idle_since_s

    def switch(self, deployment: Deployment) -> Deployment:
        """Let another model answer every request from now on; the one that did so far."""
        before, self.active = self.active, deployment
        # What it holds could not be given again, and keeps the model before in memory.
        self.recent.clear()
        return before

    async def try_model(self) -> None:
        """Have the model's thread make a forecast that nobody asked for, in its turn; raises what the model raises."""
        forecaster, now_us = self.active.forecaster, max(self._clock(), self._nobody.published_us)
        horizons_us = (min(HOUR_US, forecaster.manifest.max_horizon_us),)
        request = Request(self._nobody, History({}), now_us, horizons_us)
        await self.batcher.between(lambda: forecaster.forecast([request]))

    async def drained(self, deployment: Deployment) -> None:
        """Wait until nothing that met a deployment, which no longer answers, is under way."""
        while self._under_way[deployment]:
            await asyncio.sleep(_LOOK_S)
        # A batch may outlive whoever waited for it.
        await self.batcher.between(lambda: None)

    def newest(self, limit: int, horizons_us: tuple[int, ...]) -> list[Request]:
        """Questions about the videos that were asked for last, as of now; at most ``limit``, the newest first."""
        now_us, active = self._clock(), self.active
        return [
            self._job(snapshot, active, now_us, None, horizons_us)[0].request
            for snapshot in self._histories.newest(limit)
        ]

    def _job(
        self,
        snapshot: Snapshot,
        deployment: Deployment,
        clock_us: int,
        at_us: int | None,
        horizons_us: tuple[int, ...],
    ) -> tuple[_Job, bool]:
        now = clock_us if at_us is None else at_us
        published_us = snapshot.video.published_us
        if now < published_us:
            if at_us is not None:
                raise Invalid("at", iso(now), f"published_at ({iso(published_us)}) or later")
            # Our clock is behind the client's, by less than the skew: now is the newest time we were told.
            now = published_us
        history, as_of_bins = snapshot.history, False
        if snapshot.newest_us is not None and now < snapshot.newest_us:
            if at_us is None:
                now = snapshot.newest_us
            else:
                history, as_of_bins = ended_by(history, now - published_us), True
        request = Request(snapshot.video, history, now, horizons_us, snapshot.client)
        return _Job(request, not as_of_bins, deployment), as_of_bins

    async def _make(self, job: _Job, snapshot: Snapshot, as_of_bins: bool, stale: bool) -> Answer:
        try:
            async with asyncio.timeout(self._deadline_s):
                forecast = await self.batcher.submit(job)
        except TimeoutError:
            raise Unavailable("the forecast missed its deadline", part="model") from None
        self.made_s = time.monotonic()
        if stale:
            forecast = replace(forecast, degraded=[*forecast.degraded, "store"])
        self._count(forecast)
        answer = Answer(snapshot, forecast, job.deployment.version, as_of_bins, stale)
        for observer in self.observers if job.live and not stale else ():
            observer(answer)
        return answer

    def _made(self, deployment: Deployment, task: asyncio.Task[Answer]) -> None:
        self._under_way[deployment] -= 1
        if not self._under_way[deployment]:
            del self._under_way[deployment]
            self._idle_since_s = time.monotonic()
        # Whoever waits is told; an error that nobody waits for any more is no news.
        if not task.cancelled():
            task.exception()

    async def exists(self, video_id: str) -> bool:
        """Whether the video is registered, or the store does not say."""
        try:
            return (await self._histories.get(video_id))[0] is not None
        except Problem:
            return True

    async def forget_neighbour(self, video_id: str) -> None:
        """Drop a video from the bank of every model in memory; raises BankError."""
        for deployment in self.deployments():
            await asyncio.to_thread(deployment.bank.remove, [video_id])

    async def forget(self, video_id: str) -> None:
        """Drop what is cached of a deleted video, and of forecasts that may name it as a neighbour."""
        self._histories.forget(video_id)
        self.recent.clear()
        await self.batcher.between(lambda: self.active.pool.forget(video_id))

    def cached(self) -> list[str]:
        """Videos that something is cached of."""
        return self._histories.names()

    def _count(self, forecast: Forecast) -> None:
        self._metrics.forecasts.labels("cold" if forecast.cold_start else "warm").inc()
        for part in forecast.degraded:
            self._metrics.degraded.labels(part).inc()

    def _compute(self, jobs: Sequence[_Job]) -> Sequence[Forecast]:
        self._metrics.batch_size.observe(len(jobs))
        groups: dict[tuple[Deployment, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault((job.deployment, job.live), []).append(i)
        results: dict[int, Forecast] = {}
        for (deployment, live), indices in groups.items():
            forecasts = deployment.forecaster.forecast(
                [jobs[i].request for i in indices],
                pool=deployment.pool if live else None,
                stage=lambda name, seconds: self._metrics.model_seconds.labels(name).observe(seconds),
            )
            results.update(zip(indices, forecasts, strict=True))
        return [results[i] for i in range(len(jobs))]
