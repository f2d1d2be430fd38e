"""Makes the forecasts that are scored, and keeps them until their outcome is known.

They are the service's own: of videos that the store has news of, at moments and horizons that it chooses itself, each video once in a
step of its age. So what anybody asks for, and how often, moves no interval.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from model.engagement.bins import SECOND_US
from model.lru_cache import LRUCache
from service.background import Running
from service.forecasts.answer import Answer
from service.forecasts.engine import Engine
from service.metrics import Metrics
from service.problems import DamagedRecord, NotFound, Problem, Unavailable
from service.quality.adaptation import Adaptation
from service.quality.label import Label, labels_of
from service.quality.label_store import LabelStore
from service.quality.schedule import Schedule
from service.settings import QualitySettings
from service.store.change_publisher import Change
from service.store.forgotten import Forgotten
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

QUEUE: Final = 10_000
"""Videos that are new here and wait to be looked at, and answers of the shadow that wait to be written; more are dropped."""
FOLLOWED: Final = 100_000
"""Videos followed at once, about 0.3 KB each."""
_EVERY_S: Final = 1.0
_READS: Final = 64
"""Videos looked at in a round."""
_ROUND: Final = 8
_AGAIN_US: Final = 60 * SECOND_US
_LATE_US: Final = 60 * SECOND_US
"""A forecast as of a time further from now than this tells of no live traffic."""


class Sampler(Running):
    """A listener to changes, and a task that makes forecasts and writes labels; one replica at a time, by a lease."""

    def __init__(
        self,
        ledger: LabelStore,
        forgotten: Forgotten,
        adaptation: Adaptation,
        engine: Engine,
        store: Store,
        lease: Lease,
        settings: QualitySettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._ledger, self._forgotten, self._adaptation = ledger, forgotten, adaptation
        self._engine, self._store = engine, store
        self._lease, self._metrics, self._clock = lease, metrics, clock
        self._horizons_us = tuple(
            sorted({h * SECOND_US for h in settings.label_horizons_s if h <= settings.label_horizon_s})
        )
        self._rate = settings.label_forecasts
        self._grace_us = settings.label_grace_s * SECOND_US
        self._new: OrderedDict[str, None] = OrderedDict()
        self._schedule = Schedule(FOLLOWED)
        self._made: LRUCache[tuple[str, int], tuple[int, ...]] = LRUCache(QUEUE)
        self._shadowed: deque[Answer] = deque(maxlen=QUEUE)

    def changed(self, changes: Sequence[Change]) -> None:
        """Note videos that are new here, and forget deleted ones."""
        for video_id, version in changes:
            if not version:
                self._new.pop(video_id, None)
                self._schedule.drop(video_id)
            elif video_id not in self._schedule and self._schedule.follows(video_id):
                self._new[video_id] = None
                if len(self._new) > QUEUE:
                    self._new.popitem(last=False)

    def missed(self) -> None:
        """Nothing to do: a video is noted at its next change."""

    def shadowed(self, answer: Answer) -> None:
        """Note what the shadow says where the model that answers was asked by us."""
        made = answer.forecast
        if self._made.get((answer.snapshot.video.video_id, made.now_us)) == made.horizons_us:
            if len(self._shadowed) == QUEUE:
                self._metrics.labels.labels("dropped").inc()
            self._shadowed.append(answer)

    async def round(self) -> int:
        """Look at videos that are new, forecast some that are due, and write; how many were forecast."""
        while self._shadowed:
            answer = self._shadowed[0]
            await self.keep([answer])
            self._shadowed.popleft()
        await self._meet()
        now_us = self._clock()
        due = list(self._schedule.due(now_us, min(_ROUND, max(1, int(self._rate)))))
        for video_id in due:
            # Whatever happens, its turn comes again.
            self._schedule.later(video_id, now_us + _AGAIN_US)
        most_us = self._engine.active.forecaster.manifest.max_horizon_us
        horizons_us = tuple(h for h in self._horizons_us if h <= most_us) or (most_us,)
        answers = await asyncio.gather(
            *(self._engine.forecast(video_id, None, horizons_us) for video_id in due), return_exceptions=True
        )
        good: list[Answer] = []
        for video_id, made in zip(due, answers, strict=True):
            if isinstance(made, NotFound | DamagedRecord):
                self._schedule.drop(video_id)
            elif isinstance(made, BaseException):
                log.warning("a forecast to be scored could not be made", error=repr(made))
            elif not made.stale and abs(now_us - made.forecast.now_us) <= _LATE_US:
                good.append(made)
        videos = [answer.snapshot.video for answer in good]
        early = [self._schedule.early(video.video_id, video.published_us, now_us) for video in videos]
        # In its first seconds a video stands for no other but those without a row.
        await self.keep([a for a, soon in zip(good, early, strict=True) if a.forecast.cold_start or not soon])
        for video, soon in zip(videos, early, strict=True):
            if soon:
                self._schedule.wait(video.video_id, video.published_us)
            else:
                self._schedule.plan(video.video_id, video.published_us, now_us, made=True)
        return len(due)

    async def keep(self, answers: Sequence[Answer]) -> None:
        """Write the labels of answers."""
        by_place: dict[tuple[int, str], list[Label]] = defaultdict(list)
        for answer in answers:
            client = answer.snapshot.client
            self._made.put((answer.snapshot.video.video_id, answer.forecast.now_us), answer.forecast.horizons_us)
            for label in labels_of(answer, self._adaptation.factors(answer.model_version, client)):
                by_place[label.column, client].append(label)
        failed: list[Unavailable] = []
        for (column, _), labels in by_place.items():
            # Keeping is idempotent, so a second try after a failure half-way keeps nothing twice.
            try:
                kept, known = await self._ledger.keep(column, labels, self._grace_us)
            except Unavailable as error:
                # Keys of one column that cannot be used do not keep the others waiting.
                failed.append(error)
                continue
            for outcome, n in (("kept", kept), ("known", known), ("full", len(labels) - kept - known)):
                self._metrics.labels.labels(outcome).inc(n)
        if failed and len(failed) == len(by_place):
            raise failed[0]
        # Deleted while its forecast was made: none of its labels must stay.
        for video_id in await self._forgotten.gone(
            {answer.snapshot.video.video_id: answer.snapshot.registered_us for answer in answers}
        ):
            await self._ledger.forget(video_id)

    async def _meet(self) -> None:
        """Plan when the forecast of each video that is new here is due."""
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
        # Another replica goes on at once.
        if self._task is not None:
            await self._lease.give()

    async def _run(self) -> None:
        while True:
            made = 0
            try:
                if await self._lease.take() and self._engine.batcher.waiting == 0:
                    made = await self.round()
            except Unavailable:
                log.warning("forecasts to be scored wait")
            except Problem as problem:
                log.warning("forecasts to be scored wait", reason=problem.detail)
            except Exception:
                log.exception("forecasts to be scored could not be made")
            await asyncio.sleep(max(made / self._rate, _EVERY_S if not made else 0.0))
