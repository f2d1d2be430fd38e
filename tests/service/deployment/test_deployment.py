"""A request stays with its deployment, and the shadow yields to requests; with fake models."""

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
    """Answers once ``let`` is set."""

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


def test_request_stays_with_its_model_and_the_drain_waits_for_it(empty_redis: str) -> None:
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


class ShadowKit:
    """A shadow with a fake model, on a fake engine whose ``idle_s`` a test sets."""

    def __init__(self, forecaster: FakeForecaster | None = None, **options: Any) -> None:
        self.settings = Settings(bundle=Path("unused"), **options)
        self.metrics = new_metrics(self.settings)
        self.engine: Any = SimpleNamespace(idle_s=1.0)
        self.shadow = Shadow(self.engine, self.settings, self.metrics)  # type: ignore[arg-type]
        self.forecaster = forecaster or FakeForecaster()
        self.deployment = deployed(self.forecaster, self.metrics)
        self.results: list[ForecastResult] = []
        self.shadow.on_forecast(self.results.append)

    def answer(self) -> None:
        snapshot = Snapshot(1, Video("v", T0 * 1_000_000), History({}), None)
        request: Any = SimpleNamespace(
            video=snapshot.video,
            history=snapshot.history,
            now_us=T0 * 1_000_000,
            horizons_us=(1_000_000,),
            thresholds=(),
            metrics=(),
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


def test_shadow_waits_while_the_engine_is_busy_and_drops_past_its_queue() -> None:
    async def body() -> None:
        kit = ShadowKit(shadow_queue=3)
        kit.answer()
        assert kit.shadow.waiting == 0, "without a shadow model nothing is queued"
        kit.engine.idle_s = 0.0
        kit.shadow.begin(kit.deployment)
        for _ in range(5):
            kit.answer()
        await asyncio.sleep(0.1)
        assert kit.outcomes() == {"dropped": 2} and kit.forecaster.batches == []
        kit.engine.idle_s = 1.0
        await until(lambda: len(kit.results) == 3)
        assert kit.outcomes() == {"dropped": 2, "made": 3}
        assert {answer.model_version for answer in kit.results} == {"fa4e"}
        assert await kit.shadow.end() is kit.deployment
        kit.answer()
        assert kit.shadow.waiting == 0
        kit.shadow.close()

    asyncio.run(body())


def test_shadow_continues_after_a_failure() -> None:
    class Failing(FakeForecaster):
        failures = 1

        def forecast(self, *args: Any, **kwargs: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("no")
            return super().forecast(*args, **kwargs)

    async def body() -> None:
        kit = ShadowKit(Failing())
        kit.shadow.begin(kit.deployment)
        kit.answer()
        await until(lambda: kit.outcomes().get("failed") == 1)
        kit.answer()
        await until(lambda: kit.outcomes().get("made") == 1)
        await kit.shadow.end()
        kit.shadow.close()

    asyncio.run(body())


def test_shadow_takes_a_share_of_the_forecasts() -> None:
    async def body() -> None:
        kit = ShadowKit(shadow_share=0.25, shadow_queue=10_000)
        kit.engine.idle_s = 0.0
        kit.shadow.begin(kit.deployment)
        for _ in range(2000):
            kit.answer()
        assert 400 < kit.shadow.waiting < 600
        await kit.shadow.end()
        kit.shadow.close()

    asyncio.run(body())
