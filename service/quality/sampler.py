"""Keeps a sample of the forecasts that are given, until their outcome is known."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from model.bins import SECOND_US
from service.background import Running
from service.forecasts.answer import Answer
from service.metrics import Metrics
from service.problems import Unavailable
from service.quality.adaptation import Adaptation
from service.quality.label import Label, age_doublings, labels_of
from service.quality.ledger import Ledger
from service.settings import Settings

log = structlog.get_logger(__name__)

QUEUE: Final = 10_000
"""Answers that wait to be written; more are dropped and counted."""
_REMEMBERED: Final = 50_000
_EVERY_S: Final = 1.0
_BATCH: Final = 500
_LATE_US: Final = 60 * SECOND_US
"""A forecast as of a time further from now than this tells of no live traffic: who asks may know what came after."""

Seen = tuple[str, str, int, tuple[int, ...]]


class Sampler(Running):
    """An observer of the engine: a request pays for a look into a dictionary, Redis is told in the background."""

    def __init__(
        self,
        ledger: Ledger,
        adaptation: Adaptation,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._ledger, self._adaptation = ledger, adaptation
        self._metrics, self._clock = metrics, clock
        self._longest_us = settings.label_horizon_s * SECOND_US
        self._grace_us = settings.label_grace_s * SECOND_US
        self._queue: deque[Answer] = deque()
        self._seen: OrderedDict[Seen, None] = OrderedDict()

    def observe(self, answer: Answer) -> None:
        """Note an answer, unless one like it was noted before."""
        made, video = answer.forecast, answer.snapshot.video
        doublings = age_doublings(made.now_us - video.published_us)
        seen = (video.video_id, answer.model_version, doublings, made.horizons_us)
        if seen in self._seen or abs(self._clock() - made.now_us) > _LATE_US:
            return
        if len(self._queue) >= QUEUE:
            self._metrics.labels.labels("dropped").inc()
            return
        self._queue.append(answer)
        self._seen[seen] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    async def _ended(self) -> None:
        with suppress(Unavailable):
            while self._queue:
                await self.write()

    async def write(self) -> None:
        """Write up to ``_BATCH`` answers; they wait on where the store does not answer."""
        answers = [self._queue[i] for i in range(min(_BATCH, len(self._queue)))]
        by_column: dict[int, list[Label]] = {}
        for answer in answers:
            for label in labels_of(answer, self._longest_us, self._adaptation.factors(answer.model_version)):
                by_column.setdefault(label.column, []).append(label)
        failed: dict[int, Unavailable] = {}
        for column, labels in by_column.items():
            # Keeping is idempotent, so a second try after a failure half-way keeps nothing twice.
            try:
                kept, known = await self._ledger.keep(column, labels, self._grace_us)
            except Unavailable as error:
                failed[column] = error
                continue
            for outcome, n in (("kept", kept), ("known", known), ("full", len(labels) - kept - known)):
                self._metrics.labels.labels(outcome).inc(n)
        if failed and len(failed) == len(by_column):
            raise next(iter(failed.values()))
        # The store answers, and what stands in the way is a key of one column: it must not keep the others waiting.
        self._metrics.labels.labels("dropped").inc(sum(len(by_column[column]) for column in failed))
        for _ in answers:
            self._queue.popleft()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                while self._queue:
                    await self.write()
            except Unavailable:
                log.warning("forecasts wait to be kept", answers=len(self._queue))
            except Exception:
                log.exception("forecasts could not be kept", answers=len(self._queue))
                self._metrics.labels.labels("dropped").inc(len(self._queue))
                self._queue.clear()
