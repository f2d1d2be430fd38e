"""A request stays with its deployment, and a shadow steps aside: the parts in this process, with fakes for models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model.engagement.history import History
from model.engagement.video import Video
from service.app import create_app
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.forecasts.forecast_result import ForecastResult
from service.models.shadow import Shadow
from service.settings import Settings
from service.store.snapshot import Snapshot
from service.wiring import build, new_metrics
from tests.service.fakes import FakeBank, FakeForecaster, FakePool
from tests.service.running import QUIET, T0


class Blocking(FakeForecaster):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let = threading.Event(), threading.Event()

    def forecast(self, *args: Any, **kwargs: Any) -> Any:
        self.begun.set()
        assert self.let.wait(10)
        return super().forecast(*args, **kwargs)


def deployed(forecaster: FakeForecaster, metrics: Any) -> Deployment:
    made: Any = forecaster
    pool: Any = FakePool()
    return Deployment(made, BankCircuitBreaker(FakeBank(), metrics), pool)


def test_a_request_stays_with_the_model_that_it_met_and_the_drain_waits_for_it(empty_redis: str) -> None:
    settings = Settings(bundle=Path("unused"), **QUIET)
    metrics = new_metrics(settings)
    slow, quick = Blocking(), FakeForecaster()
    quick.manifest = replace(quick.manifest, version="new")
    old, new = deployed(slow, metrics), deployed(quick, metrics)

    async def body() -> None:
        context = build(settings, metrics, old, empty_redis)
        app = create_app(context)
        async with app.router.lifespan_context(app):
            await context.videos.register("v", {"published_at": T0})
            first = asyncio.create_task(context.engine.forecast("v", None, (1_000_000,)))
            await asyncio.to_thread(slow.begun.wait, 10)
            assert context.engine.idle_s == 0
            assert context.engine.switch(new) is old
            second = asyncio.create_task(context.engine.forecast("v", None, (1_000_000,)))
            drain = asyncio.create_task(context.engine.drained(old))
            await asyncio.sleep(0.1)
            assert not drain.done() and not first.done()
            slow.let.set()
            assert (await first).model_version == "fa4e" and (await second).model_version == "new"
            await asyncio.wait_for(drain, 5)
            assert context.engine.idle_s > 0

    asyncio.run(body())


class Along:
    """A shadow of fakes on an engine that is busy when told."""

    def __init__(self, forecaster: FakeForecaster | None = None, **options: Any) -> None:
        self.settings = Settings(bundle=Path("unused"), **options)
        self.metrics = new_metrics(self.settings)
        self.engine: Any = SimpleNamespace(idle_s=1.0)
        self.shadow = Shadow(self.engine, self.settings, self.metrics)
        self.forecaster = forecaster or FakeForecaster()
        self.deployment = deployed(self.forecaster, self.metrics)
        self.told: list[ForecastResult] = []
        self.shadow.on_forecast(self.told.append)

    def answer(self) -> None:
        snapshot = Snapshot(1, Video("v", T0 * 1_000_000), History({}), None)
        request: Any = SimpleNamespace(
            video=snapshot.video, history=snapshot.history, now_us=T0 * 1_000_000, horizons_us=(1_000_000,)
        )
        made = ForecastResult(snapshot, FakeForecaster()._one(request), "active", False, False)
        self.shadow.observe(made)

    def outcomes(self) -> dict[str, float]:
        (family,) = self.metrics.shadow_forecasts.collect()
        return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_shadow_waits_while_the_engine_is_busy_and_drops_what_it_has_no_room_for() -> None:
    async def body() -> None:
        along = Along(shadow_queue=3)
        along.answer()
        assert along.shadow.waiting == 0, "without a model it notes nothing"
        along.engine.idle_s = 0.0
        along.shadow.begin(along.deployment)
        for _ in range(5):
            along.answer()
        await asyncio.sleep(0.1)
        assert along.outcomes() == {"dropped": 2} and along.forecaster.batches == []
        along.engine.idle_s = 1.0
        await until(lambda: len(along.told) == 3)
        assert along.outcomes() == {"dropped": 2, "made": 3}
        assert {answer.model_version for answer in along.told} == {"fa4e"}
        assert await along.shadow.end() is along.deployment
        along.answer()
        assert along.shadow.waiting == 0
        along.shadow.close()

    asyncio.run(body())


def test_a_shadow_that_fails_goes_on() -> None:
    class Failing(FakeForecaster):
        failures = 1

        def forecast(self, *args: Any, **kwargs: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("no")
            return super().forecast(*args, **kwargs)

    async def body() -> None:
        along = Along(Failing())
        along.shadow.begin(along.deployment)
        along.answer()
        await until(lambda: along.outcomes().get("failed") == 1)
        along.answer()
        await until(lambda: along.outcomes().get("made") == 1)
        await along.shadow.end()
        along.shadow.close()

    asyncio.run(body())


def test_a_share_of_the_answers() -> None:
    async def body() -> None:
        along = Along(shadow_share=0.25, shadow_queue=10_000)
        along.engine.idle_s = 0.0
        along.shadow.begin(along.deployment)
        for _ in range(2000):
            along.answer()
        assert 400 < along.shadow.waiting < 600
        await along.shadow.end()
        along.shadow.close()

    asyncio.run(body())
