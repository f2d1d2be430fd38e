"""Runs a second model, the shadow, beside the active one.

The shadow repeats forecasts of the active model. Its forecasts are compared and scored but never served.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import structlog

from model.forecast import Forecast, Request
from model.quantiles.head import HIGH, LOW, MEDIAN
from service.background import BackgroundTask
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.forecasts.forecast_result import ForecastResult
from service.metrics import Metrics
from service.settings import ModelSettings

log = structlog.get_logger(__name__)

_BATCH: Final = 2
"""Maximum number of forecasts in one batch. The number is small because a client's forecast may have to wait for the batch."""
_IDLE_S: Final = 0.01
"""Idle time in seconds. The shadow makes forecasts only after the active model made none for this time.

The time is longer than the gap between two batches of the active model under load.
"""
_POLL_S: Final = 0.005


class Shadow(BackgroundTask):
    """Repeats a sample of the active model's forecasts in a separate thread, while no client waits for a forecast.

    Forecasts that exceed the queue's limit are dropped and counted. ``deployment`` is the shadow model, or None if there is no shadow.
    """

    def __init__(self, engine: Engine, settings: ModelSettings, metrics: Metrics) -> None:
        self.deployment: Deployment | None = None
        self._observers: list[Callable[[ForecastResult], None]] = []
        self._engine, self._metrics = engine, metrics
        self._share, self._limit = settings.shadow_share, settings.shadow_queue
        self._queue: deque[ForecastResult] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3tr-shadow")

    def on_forecast(self, observer: Callable[[ForecastResult], None]) -> None:
        """Call ``observer`` with every forecast of the shadow model. The observer must not block."""
        self._observers.append(observer)

    @property
    def waiting(self) -> int:
        """Number of queued forecasts that the shadow has not repeated yet."""
        return len(self._queue)

    def observe(self, result: ForecastResult) -> None:
        """If a forecast of the active model is drawn for the sample, queue it to be repeated."""
        if self.deployment is None or random.random() >= self._share:
            return
        if len(self._queue) >= self._limit:
            self._metrics.shadow_forecasts.labels("dropped").inc()
            return
        self._queue.append(result)
        self._some.set()

    def begin(self, deployment: Deployment) -> None:
        """Make a model the shadow. There must be no shadow yet."""
        assert self.deployment is None
        self.deployment = deployment
        self.start()

    async def end(self) -> Deployment | None:
        """Stop the shadow. Return its model, which makes no more forecasts, or None if there was no shadow."""
        deployment, self.deployment = self.deployment, None
        if self._task is not None:
            await self.stop()
            # The thread's work cannot be cancelled, so wait for it.
            await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)
            self._task = None
        self._queue.clear()
        return deployment

    def close(self) -> None:
        """Release the thread. Call this after ``end``."""
        self._thread.shutdown()

    async def _run(self) -> None:
        failing, deployment = False, self.deployment
        while deployment is not None:
            self._some.clear()
            while self._queue:
                while self._engine.idle_s < _IDLE_S:
                    await asyncio.sleep(_POLL_S)
                results = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                try:
                    await self._make(deployment, results)
                    failing = False
                except Exception:
                    if not failing:
                        log.exception("the shadow model failed", model_version=deployment.version)
                    failing = True
                    self._metrics.shadow_forecasts.labels("failed").inc(len(results))
            await self._some.wait()

    async def _make(self, deployment: Deployment, results: Sequence[ForecastResult]) -> None:
        # The observed forecasts were made from the whole snapshot, so the shadow uses the whole history too.
        own = deployment.forecaster.manifest.metrics
        results = [result for result in results if result.forecast.metric in own]
        requests = [
            Request(
                r.snapshot.video,
                r.snapshot.history,
                r.forecast.now_us,
                r.forecast.horizons_us,
                r.snapshot.client,
                metrics=tuple(forecast.metric for forecast in r.forecasts if forecast.metric in own),
            )
            for r in results
        ]
        loop = asyncio.get_running_loop()
        forecasts = await loop.run_in_executor(
            self._thread,
            lambda: deployment.forecaster.forecast_metrics(requests, pool=deployment.pool),
        )
        for result, made in zip(results, forecasts, strict=True):
            self._metrics.shadow_forecasts.labels("made").inc()
            for active in result.forecasts:
                if active.metric in made:
                    self._compare(active, made[active.metric])
            first, *further = made.values()
            shadowed = ForecastResult(
                result.snapshot, first, deployment.version, as_of_bins=False, stale=False, further=tuple(further)
            )
            for observer in self._observers:
                observer(shadowed)

    def _compare(self, active: Forecast, shadow: Forecast) -> None:
        ours, theirs = np.log2(1 + active.quantiles), np.log2(1 + shadow.quantiles)
        for difference in (theirs[:, MEDIAN] - ours[:, MEDIAN]).tolist():
            self._metrics.shadow_difference.observe(difference)
        widths, widths_shadow = ours[:, HIGH] - ours[:, LOW], theirs[:, HIGH] - theirs[:, LOW]
        positive = widths > 0
        for ratio in (widths_shadow[positive] / widths[positive]).tolist():
            self._metrics.shadow_width.observe(ratio)
