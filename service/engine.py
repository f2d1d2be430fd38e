"""Forecasts: a video's snapshot, cut to the time asked for, through the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from model.bins import bin_end_us
from model.forecaster import Forecast, Request
from model.history import History, Series
from service.batcher import Batcher
from service.deployment import Deployment
from service.histories import Histories
from service.metrics import Metrics
from service.problems import Invalid, NotFound, Unavailable
from service.settings import Settings
from service.snapshot import Snapshot
from service.times import iso, now_us


@dataclass(frozen=True, slots=True)
class Answer:
    """A forecast, the version of the model that made it, and what it was made from.

    ``as_of_bins``: ``at`` lies before the newest row, so only bins that had ended by then were used. ``stale``: the
    store did not answer, and this is the video as it was last read.
    """

    snapshot: Snapshot
    forecast: Forecast
    model_version: str
    as_of_bins: bool
    stale: bool


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    live: bool
    """Whether the history is the video's newest, and so may move its cached state."""


def ended_by(history: History, age_us: int) -> History:
    """The part of a history in bins that had ended at an age."""

    def cut(series: Series) -> Series:
        kept = bin_end_us(series.bins) <= age_us
        return Series(series.mode, series.bins[kept], series.values[kept])

    reach = {index: value for index, value in history.reach.items() if int(bin_end_us(index)) <= age_us}
    return History({kind: cut(series) for kind, series in history.series.items()}, reach)


class Engine:
    """Answers forecasts from histories through one worker thread, which alone touches the pool's states.

    ``active`` answers; it may be replaced at any time, and a batch is computed by one deployment. ``observers`` are told
    every answer made from a video's newest history; they must not block.
    """

    def __init__(
        self,
        deployment: Deployment,
        histories: Histories,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.active = deployment
        self.observers: list[Callable[[Answer], None]] = []
        self._histories = histories
        self._metrics = metrics
        self._clock = clock
        self._deadline_s = settings.request_deadline_ms / 1000
        self.batcher: Batcher[_Job, tuple[Forecast, str]] = Batcher(
            self._compute,
            size=settings.batch_forecasts,
            wait_s=settings.batch_wait_ms / 1000,
            queue=settings.queue_forecasts,
        )

    async def forecast(self, video_id: str, at_us: int | None, horizons_us: tuple[int, ...]) -> Answer:
        """Forecast a registered video as of ``at_us`` (None: now)."""
        snapshot, stale = await self._histories.get(video_id)
        if snapshot is None:
            raise NotFound("this video is not registered", field="video_id", value=video_id)
        now = self._clock() if at_us is None else at_us
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
        job = _Job(Request(snapshot.video, history, now, horizons_us), live=not as_of_bins)
        try:
            async with asyncio.timeout(self._deadline_s):
                forecast, version = await self.batcher.submit(job)
        except TimeoutError:
            raise Unavailable("the forecast missed its deadline", part="model") from None
        if stale:
            forecast = replace(forecast, degraded=[*forecast.degraded, "store"])
        self._count(forecast)
        answer = Answer(snapshot, forecast, version, as_of_bins, stale)
        if job.live and not stale:
            for observer in self.observers:
                observer(answer)
        return answer

    async def forget(self, video_id: str) -> None:
        """Drop what is cached of a deleted video."""
        self._histories.forget(video_id)
        await self.batcher.between(lambda: self.active.pool.forget(video_id))

    def _count(self, forecast: Forecast) -> None:
        self._metrics.forecasts.labels("cold" if forecast.cold_start else "warm").inc()
        for part in forecast.degraded:
            self._metrics.degraded.labels(part).inc()

    def _compute(self, jobs: Sequence[_Job]) -> Sequence[tuple[Forecast, str]]:
        deployment = self.active
        self._metrics.batch_size.observe(len(jobs))
        results: dict[int, Forecast] = {}
        for live in (True, False):
            indices = [i for i, job in enumerate(jobs) if job.live is live]
            if indices:
                forecasts = deployment.forecaster.forecast(
                    [jobs[i].request for i in indices],
                    pool=deployment.pool if live else None,
                    stage=lambda name, seconds: self._metrics.model_seconds.labels(name).observe(seconds),
                )
                results.update(zip(indices, forecasts, strict=True))
        return [(results[i], deployment.version) for i in range(len(jobs))]
