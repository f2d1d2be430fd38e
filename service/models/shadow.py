"""A second model beside the one that answers: it forecasts the same traffic, and nobody gets its forecasts but the scores."""

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
from service.background import Running
from service.deployment.deployment import Deployment
from service.forecasts.answer import Answer
from service.forecasts.engine import Engine
from service.metrics import Metrics
from service.settings import ModelSettings

log = structlog.get_logger(__name__)

_BATCH: Final = 2
"""Forecasts made together: few, because one that somebody waits for may come meanwhile."""
_IDLE_S: Final = 0.01
"""Seconds without any forecast under way before the shadow makes one: between two batches of a busy service is no rest."""
_LOOK_S: Final = 0.005


class Shadow(Running):
    """Forecasts a sample of what was just answered, in a thread of its own, and only while nobody waits for a forecast.

    What does not fit the queue is dropped and counted. ``deployment`` is the model, None while there is none;
    ``observers`` are told its answers as the engine's are told theirs.
    """

    def __init__(self, engine: Engine, settings: ModelSettings, metrics: Metrics) -> None:
        self.deployment: Deployment | None = None
        self.observers: list[Callable[[Answer], None]] = []
        self._engine, self._metrics = engine, metrics
        self._share, self._room = settings.shadow_share, settings.shadow_queue
        self._queue: deque[Answer] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3tr-shadow")
        engine.observers.append(self.observe)

    @property
    def waiting(self) -> int:
        """Answers that it has not forecast yet."""
        return len(self._queue)

    def observe(self, answer: Answer) -> None:
        """Note an answer of the model that answers."""
        if self.deployment is None or random.random() >= self._share:
            return
        if len(self._queue) >= self._room:
            self._metrics.shadow_forecasts.labels("dropped").inc()
            return
        self._queue.append(answer)
        self._some.set()

    def begin(self, deployment: Deployment) -> None:
        """Let a model forecast along; there must be none."""
        assert self.deployment is None
        self.deployment = deployment
        self.start()

    async def end(self) -> Deployment | None:
        """Stop; the model, which is at rest from now on."""
        deployment, self.deployment = self.deployment, None
        if self._task is not None:
            await self.stop()
            # Its thread cannot be cancelled.
            await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)
            self._task = None
        self._queue.clear()
        return deployment

    def close(self) -> None:
        """Release the thread, after the end."""
        self._thread.shutdown()

    async def _run(self) -> None:
        failing, deployment = False, self.deployment
        while deployment is not None:
            self._some.clear()
            while self._queue:
                while self._engine.idle_s < _IDLE_S:
                    await asyncio.sleep(_LOOK_S)
                answers = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                try:
                    await self._make(deployment, answers)
                    failing = False
                except Exception:
                    if not failing:
                        log.exception("the shadow model fails", model_version=deployment.version)
                    failing = True
                    self._metrics.shadow_forecasts.labels("failed").inc(len(answers))
            await self._some.wait()

    async def _make(self, deployment: Deployment, answers: Sequence[Answer]) -> None:
        # A live answer is made from the whole of its snapshot.
        requests = [
            Request(a.snapshot.video, a.snapshot.history, a.forecast.now_us, a.forecast.horizons_us, a.snapshot.client)
            for a in answers
        ]
        loop = asyncio.get_running_loop()
        forecasts = await loop.run_in_executor(
            self._thread,
            lambda: deployment.forecaster.forecast(requests, pool=deployment.pool),
        )
        for answer, forecast in zip(answers, forecasts, strict=True):
            self._metrics.shadow_forecasts.labels("made").inc()
            self._compare(answer.forecast, forecast)
            shadowed = Answer(answer.snapshot, forecast, deployment.version, as_of_bins=False, stale=False)
            for observer in self.observers:
                observer(shadowed)

    def _compare(self, active: Forecast, shadow: Forecast) -> None:
        told, told_shadow = np.log2(1 + active.quantiles), np.log2(1 + shadow.quantiles)
        for difference in (told_shadow[:, 1] - told[:, 1]).tolist():
            self._metrics.shadow_difference.observe(difference)
        widths, widths_shadow = told[:, 2] - told[:, 0], told_shadow[:, 2] - told_shadow[:, 0]
        some = widths > 0
        for ratio in (widths_shadow[some] / widths[some]).tolist():
            self._metrics.shadow_width.observe(ratio)
