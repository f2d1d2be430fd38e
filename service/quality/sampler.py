"""Makes the forecasts that are scored, and stores them as labels until their outcome is known.

The service makes these forecasts itself. The service chooses the times and horizons, and forecasts each changing video once per age step.
Therefore clients cannot influence the intervals by their requests.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from model.engagement.bins import SECOND_US
from model.lru_cache import LRUCache
from service.background import BackgroundTask
from service.forecasts.engine import Engine
from service.forecasts.forecast_result import ForecastResult
from service.metrics import Metrics
from service.problems import DamagedRecord, NotFound, Problem, Unavailable
from service.quality.adaptation import Adaptation
from service.quality.label import Label, labels_of
from service.quality.label_store import LabelStore
from service.quality.schedule import Schedule
from service.settings import QualitySettings
from service.store.change_publisher import Change
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

QUEUE: Final = 10_000
"""Maximum length of each of two queues. Excess entries are dropped.

One queue holds new videos that wait to be scheduled. The other holds shadow forecasts that wait to be stored.
"""
FOLLOWED: Final = 100_000
"""Maximum number of videos in the schedule. Each video takes about 0.3 KB."""
_EVERY_S: Final = 1.0
_READS: Final = 64
"""Maximum number of new videos read in one pass."""
_BATCH: Final = 8
_AGAIN_US: Final = 60 * SECOND_US
_LATE_US: Final = 60 * SECOND_US
"""Maximum distance in microseconds between a forecast's time and now. A more distant forecast does not represent current traffic."""


class Sampler(BackgroundTask):
    """Watches the change stream, makes forecasts and stores labels. A lease ensures that only one replica at a time forecasts."""

    def __init__(
        self,
        label_store: LabelStore,
        adaptation: Adaptation,
        engine: Engine,
        store: Store,
        lease: Lease,
        settings: QualitySettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._label_store, self._forgotten, self._adaptation = label_store, store.forgotten, adaptation
        self._engine, self._store = engine, store
        self._lease, self._metrics, self._clock = lease, metrics, clock
        self._horizons_us = tuple(
            sorted({h * SECOND_US for h in settings.label_horizons_s if h <= settings.label_horizon_s})
        )
        self._rate = settings.label_forecasts
        self._grace_us = settings.label_grace_s * SECOND_US
        self._new: OrderedDict[str, None] = OrderedDict()
        self._schedule = Schedule(FOLLOWED)
        self._made: LRUCache[tuple[str, int], tuple[tuple[int, ...], tuple[str, ...]]] = LRUCache(QUEUE)
        self._shadowed: deque[ForecastResult] = deque(maxlen=QUEUE)

    def changed(self, changes: Sequence[Change]) -> None:
        """Record new videos, and drop deleted ones."""
        for video_id, version in changes:
            if not version:
                self._new.pop(video_id, None)
                self._schedule.drop(video_id)
            elif video_id not in self._schedule and self._schedule.follows(video_id):
                self._new[video_id] = None
                if len(self._new) > QUEUE:
                    self._new.popitem(last=False)

    def missed(self) -> None:
        """Do nothing, because a missed video is recorded at its next change."""

    def shadowed(self, result: ForecastResult) -> None:
        """Queue a forecast of the shadow model, to be stored as labels.

        The forecast is skipped unless this sampler made the active model's forecast for the same video, time, horizons and metrics.
        """
        if self._made.get((result.snapshot.video.video_id, result.forecast.now_us)) == _asked(result):
            if len(self._shadowed) == QUEUE:
                self._metrics.labels.labels("dropped").inc()
            self._shadowed.append(result)

    async def run_once(self) -> int:
        """Schedule new videos, forecast some that are due, and store their labels. Return the number of videos that were due."""
        while self._shadowed:
            await self.keep([self._shadowed[0]])
            self._shadowed.popleft()
        await self._schedule_new()
        now_us = self._clock()
        due = list(self._schedule.due(now_us, min(_BATCH, max(1, int(self._rate)))))
        for video_id in due:
            # If anything fails below, the video is tried again at the time set here.
            self._schedule.later(video_id, now_us + _AGAIN_US)
        manifest = self._engine.active.forecaster.manifest
        max_us, metrics = manifest.max_horizon_us, manifest.metrics
        horizons_us = tuple(h for h in self._horizons_us if h <= max_us) or (max_us,)
        metrics = metrics if len(metrics) > 1 else ()
        results = await asyncio.gather(
            *(self._engine.forecast(video_id, None, horizons_us, metrics=metrics) for video_id in due),
            return_exceptions=True,
        )
        good: list[ForecastResult] = []
        for video_id, result in zip(due, results, strict=True):
            if isinstance(result, NotFound | DamagedRecord):
                self._schedule.drop(video_id)
            elif isinstance(result, BaseException):
                log.warning("a forecast that was to be scored failed", error=repr(result))
            elif not result.stale and abs(now_us - result.forecast.now_us) <= _LATE_US:
                good.append(result)
        videos = [result.snapshot.video for result in good]
        early = [self._schedule.early(video.video_id, video.published_us, now_us) for video in videos]
        # Before its due time in the first age step, a video represents only videos without rows.
        await self.keep([r for r, soon in zip(good, early, strict=True) if r.forecast.cold_start or not soon])
        for video, soon in zip(videos, early, strict=True):
            if soon:
                self._schedule.wait(video.video_id, video.published_us)
            else:
                self._schedule.plan(video.video_id, video.published_us, now_us, made=True)
        return len(due)

    async def keep(self, results: Sequence[ForecastResult]) -> None:
        """Store the labels of forecasts."""
        by_bucket: dict[tuple[int, str], list[Label]] = defaultdict(list)
        for result in results:
            client = result.snapshot.client
            self._made.put((result.snapshot.video.video_id, result.forecast.now_us), _asked(result))
            for forecast in result.forecasts:
                factors = self._adaptation.factors(result.model_version, forecast.metric, client)
                for label in labels_of(result, forecast, factors):
                    by_bucket[label.horizon_bucket, client].append(label)
        failed: list[Unavailable] = []
        for (bucket, _), labels in by_bucket.items():
            # Storing is idempotent: a second try after a partial failure stores no label twice.
            try:
                kept, known = await self._label_store.keep(bucket, labels, self._grace_us)
            except Unavailable as error:
                # If the keys of one bucket are unusable, the labels of the other buckets must still be stored.
                failed.append(error)
                continue
            for outcome, n in (("kept", kept), ("known", known), ("full", len(labels) - kept - known)):
                self._metrics.labels.labels(outcome).inc(n)
        if failed and len(failed) == len(by_bucket):
            raise failed[0]
        # If a video was deleted while its forecast was made, none of its labels may stay.
        for video_id in await self._forgotten.gone(
            {result.snapshot.video.video_id: result.snapshot.registered_us for result in results}
        ):
            await self._label_store.forget(video_id)

    async def _schedule_new(self) -> None:
        """Schedule the first forecast of each new video."""
        names = [name for name, _ in zip(self._new, range(_READS), strict=False)]
        if not names:
            return
        found = await self._store.read_many(dict.fromkeys(names))
        now_us = self._clock()
        for name, snapshot in found.items():
            self._new.pop(name, None)
            if isinstance(snapshot, Snapshot):
                self._schedule.plan(name, snapshot.video.published_us, now_us, made=False)

    async def _ended(self) -> None:
        # Release the lease, so that a different replica can continue at once.
        if self._task is not None:
            await self._lease.release()

    async def _run(self) -> None:
        while True:
            made = 0
            try:
                if await self._lease.acquire() and self._engine.batcher.waiting == 0:
                    made = await self.run_once()
            except Unavailable:
                log.warning("the sampling of forecasts is delayed")
            except Problem as problem:
                log.warning("the sampling of forecasts is delayed", reason=problem.detail)
            except Exception:
                log.exception("the sampling of forecasts failed")
            await asyncio.sleep(max(made / self._rate, _EVERY_S if not made else 0.0))


def _asked(result: ForecastResult) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the horizons and metrics of a result."""
    return result.forecast.horizons_us, tuple(forecast.metric for forecast in result.forecasts)
