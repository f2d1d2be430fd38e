"""The parts that keep and score labels, on a real store and a clock that a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from model.engagement.bins import HOUR_US
from model.engagement.history import History
from model.engagement.video import Video
from model.forecast import Forecast, Request
from service.forecasts.forecast_result import ForecastResult
from service.problems import NotFound
from service.quality import label
from service.quality.adaptation import Adaptation
from service.quality.label import Label
from service.quality.label_store import LabelStore
from service.quality.sampler import Sampler
from service.quality.scorer import Scorer
from service.quality.scores import ScoreSums
from service.settings import Settings
from service.store.functions import connect
from service.store.redis.lease import Lease
from service.store.rows.row import InputRow
from service.store.snapshot import Snapshot, signed
from service.store.store import Registration, Store
from service.wiring import new_metrics
from tests.service.fakes import FakeForecaster
from tests.service.running import T0

T = TypeVar("T")
P0 = T0 * 1_000_000
S = 1_000_000
H = HOUR_US
DAY = 24 * H


class Clock:
    """A clock that a test sets."""

    def __init__(self, now_us: int = P0) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


@dataclass(frozen=True, eq=False)
class Deployed:
    version: str
    forecaster: FakeForecaster


class World:
    """The parts that keep and score labels, without background work."""

    def __init__(self, url: str, clock: Clock, metrics: tuple[str, ...] = ("view",), **options: Any) -> None:
        self.settings = Settings(**{"bundle": Path("unused"), **options})
        self.metrics, self.clock = new_metrics(self.settings), clock
        self.link = connect(url, self.metrics, deadline_s=5, connections=8)
        self.store = Store(self.link, self.settings, self.metrics)
        self.label_store = LabelStore(
            self.link, capacity=self.settings.labels, days=self.settings.quality_days, share=self.settings.label_share
        )
        self.forecaster = FakeForecaster(metrics)
        deployment: Any = Deployed("m1", self.forecaster)
        self.adaptation = Adaptation(self.label_store, lambda: deployment, self.settings, clock)
        engine: Any = SimpleNamespace(active=deployment, forecast=self.forecast)
        self.store_lease = Lease(self.link, "m3tr:{labels}:sampling", 60)
        self.sampler = Sampler(
            self.label_store,
            self.adaptation,
            engine,
            self.store,
            self.store_lease,
            self.settings,
            self.metrics,
            clock,
        )
        lease = Lease(self.link, "m3tr:{labels}:lease", 60)
        self.scorer = Scorer(self.label_store, self.store, lease, self.settings, self.metrics, clock)

    async def forecast(
        self, video_id: str, at_us: int | None, horizons_us: tuple[int, ...], metrics: tuple[str, ...] = ()
    ) -> ForecastResult:
        snapshot = await self.store.read(video_id)
        if snapshot is None:
            raise NotFound("gone")
        now_us = self.clock.now_us
        request = Request(snapshot.video, snapshot.history, now_us, horizons_us, snapshot.client, metrics=metrics)
        first, *further = self.forecaster.forecast_metrics([request])[0].values()
        return ForecastResult(snapshot, first, "m1", as_of_bins=False, stale=False, further=tuple(further))

    def outcomes(self) -> dict[str, int]:
        (family,) = self.metrics.labels.collect()
        return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total") and s.value}

    async def score_sums(self, model: str = "m1", metric: str = "view") -> ScoreSums:
        found = (await self.label_store.scores_by_model(self.clock.now_us)).get(model)
        return ScoreSums() if found is None else found.by_metric.get(metric, ScoreSums())


def with_world(url: str, work: Callable[[World], Awaitable[T]], clock: Clock | None = None, **options: Any) -> T:
    async def body() -> T:
        world = World(url, clock or Clock(), **options)
        try:
            await world.store.ready()
            return await work(world)
        finally:
            await world.link.close()

    return asyncio.run(body())


def answer(
    video_id: str = "v",
    *,
    at_us: int,
    horizons_us: tuple[int, ...] = (H,),
    value: float = 100,
    quantiles: Any = ((110, 150, 199),),
    model: str = "m1",
    metric: str = "view",
    client: str = "",
    cold: bool = False,
) -> ForecastResult:
    counts = {"view": round(value)}
    low, middle, high = np.array(quantiles, float).T
    seven = np.stack([low - 5, low, (low + middle) / 2, middle, (middle + high) / 2, high, high + 5], axis=1)
    made = Forecast(at_us, metric, value, counts, horizons_us, seven, middle + 1, {}, [], cold, [], 0.0)
    snapshot = Snapshot(1, Video(video_id, P0), History(), None, client=client)
    return ForecastResult(snapshot, made, model, as_of_bins=False, stale=False)


def labels_of(result: ForecastResult, factors: Any) -> Iterator[Label]:
    """The labels of the first metric."""
    return label.labels_of(result, result.forecast, factors)


def events(video_id: str, at_us: int, count: int, kind: str = "view") -> InputRow:
    return InputRow(0, video_id, at_us, "events", ((kind, count),))


async def given(world: World, video_id: str, *rows: InputRow, client: str = "") -> None:
    await world.store.register(video_id, Registration(P0, signed("{}", client)))
    if rows:
        await world.store.apply({video_id: list(rows)})


async def keep(world: World, *answers: ForecastResult) -> None:
    await world.sampler.keep(answers)
