"""The life of a label: kept, scored once, told, and what it does to intervals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest

from model.adaptive import STEPS, Adaptive
from model.bins import HOUR_US
from model.calibration import N_COLUMNS, column_of
from model.forecaster import Forecast
from model.history import History
from model.video import Video
from service.context import new_metrics
from service.forecasts.answer import Answer
from service.problems import Unavailable
from service.quality import sampler as sampling
from service.quality.adaptation import Adaptation
from service.quality.label import age_doublings, labels_of
from service.quality.ledger import Ledger, Settlement, parse_adaptive
from service.quality.report import Report
from service.quality.sampler import Sampler
from service.quality.scorer import Scorer
from service.quality.tally import Tally
from service.settings import Settings
from service.store.lease import Lease
from service.store.link import Link
from service.store.row import Row
from service.store.snapshot import Snapshot
from service.store.store import Registration, Store
from tests.service.fakes import FakeForecaster
from tests.service.live import T0, live, wait_until
from tests.service.test_metrics import promtool_complaints

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
    """The parts behind labels on a real server, with a clock of their own and no background."""

    def __init__(self, url: str, clock: Clock, **options: Any) -> None:
        self.settings = Settings(**{"bundle": Path("unused"), **options})
        self.metrics, self.clock = new_metrics(self.settings), clock
        self.link = Link(url, self.metrics, deadline_s=5, connections=8)
        self.store = Store(self.link, self.settings, self.metrics)
        self.ledger = Ledger(self.link, room=self.settings.labels, days=self.settings.quality_days)
        self.forecaster = FakeForecaster()
        deployment: Any = Deployed("m1", self.forecaster)
        self.adaptation = Adaptation(self.ledger, lambda: deployment, self.settings, clock)
        self.sampler = Sampler(self.ledger, self.store.forgotten, self.adaptation, self.settings, self.metrics, clock)
        lease = Lease(self.link, "m3tr:{labels}:lease", 60)
        self.scorer = Scorer(self.ledger, self.store, lease, self.settings, self.metrics, clock)

    def outcomes(self) -> dict[str, int]:
        (family,) = self.metrics.labels.collect()
        return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total") and s.value}

    async def tally(self, model: str = "m1") -> Tally:
        return (await self.ledger.tallies(self.clock.now_us)).get(model, Tally())


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
) -> Answer:
    counts = {"view": round(value)}
    made = Forecast(at_us, metric, value, counts, horizons_us, np.array(quantiles, float), {}, [], False, [], 0.0)
    return Answer(Snapshot(1, Video(video_id, P0), History(), None), made, model, as_of_bins=False, stale=False)


def events(video_id: str, at_us: int, count: int, kind: str = "view") -> Row:
    return Row(0, video_id, at_us, "events", ((kind, count),))


async def given(world: World, video_id: str, *rows: Row) -> None:
    await world.store.register(video_id, Registration(P0, "{}"))
    if rows:
        await world.store.apply({video_id: list(rows)})


async def keep(world: World, *answers: Answer) -> None:
    for each in answers:
        world.sampler.observe(each)
    await world.sampler.write()


# What is kept.


def test_one_forecast_a_video_model_horizon_and_doubling_of_age() -> None:
    def key(**change: Any) -> bytes:
        arguments = {"at_us": P0 + 20 * H, **change}
        return next(labels_of(answer(**arguments), DAY, None)).key

    assert key() == key(at_us=P0 + 25 * H, value=3)
    others = [key(video_id="w"), key(model="m2"), key(horizons_us=(2 * H,)), key(at_us=P0 + 40 * H)]
    assert len({key(), *others}) == 5
    one = next(labels_of(answer(at_us=P0 + 20 * H), DAY, None))
    assert age_doublings(one.key_until_us - 1 - P0) == age_doublings(20 * H) == age_doublings(one.key_until_us - P0) - 1


def test_kept_once_up_to_the_longest_horizon(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        both = answer(at_us=P0 + H, horizons_us=(H, 9 * DAY), quantiles=((1, 2, 3),) * 2)
        await keep(world, both, both)
        assert world.outcomes() == {"kept": 1}
        other = World(empty_redis, world.clock)
        await keep(other, both)
        assert other.outcomes() == {"known": 1} and await other.ledger.pending() == 1
        await other.link.close()

    with_world(empty_redis, work)


def test_asked_as_of_another_time_is_not_kept(empty_redis: str) -> None:
    """Who asks about a time that is past may know that nothing happened since."""

    async def work(world: World) -> None:
        world.clock.now_us = P0 + 5 * H
        await keep(world, answer(at_us=P0 + H), answer(at_us=P0 + 9 * H))
        assert await world.ledger.pending() == 0

    with_world(empty_redis, work)


def test_room_is_bounded_and_shared_out(empty_redis: str) -> None:
    """80 places are 10 a column; a column is filled at a twentieth of them for each twentieth of the horizon."""

    async def work(world: World) -> None:
        for step in range(40):
            world.clock.now_us = P0 + H + step * (4 * H // 20 + 1)
            await keep(
                world, *(answer(f"{step}.{i}", at_us=world.clock.now_us, horizons_us=(4 * H,)) for i in range(3))
            )
        assert await world.ledger.pending() == 10
        assert world.outcomes() == {"kept": 10, "full": 110}
        await keep(world, answer("short", at_us=world.clock.now_us, horizons_us=(60 * S,)))
        assert await world.ledger.pending() == 11

    with_world(empty_redis, work, labels=80)


def test_a_full_queue_drops_and_counts(empty_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "QUEUE", 2)

    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        for name in "abc":
            world.sampler.observe(answer(name, at_us=P0 + H))
        assert world.outcomes() == {"dropped": 1}
        await world.sampler.write()
        assert world.outcomes() == {"dropped": 1, "kept": 2}

    with_world(empty_redis, work)


def test_answers_wait_while_the_store_is_down(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        down = World("redis://127.0.0.1:1", world.clock)
        down.sampler.observe(answer(at_us=P0 + H))
        with pytest.raises(Unavailable):
            await down.sampler.write()
        down.sampler._ledger, down.sampler._forgotten = world.ledger, world.store.forgotten
        await down.sampler.write()
        assert await world.ledger.pending() == 1
        await down.link.close()

    with_world(empty_redis, work)


# What is scored.


def test_scores_are_what_they_say(empty_redis: str) -> None:
    """From 99 to 399 is two doublings; 199 was the median, and 299 the upper end."""

    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + 10 * S, 99), events("v", P0 + H + 60 * S, 300))
        await given(world, "w", events("w", P0 + 10 * S, 99))
        world.clock.now_us = P0 + H
        said = (99, 199, 299)
        await keep(world, *(answer(name, at_us=P0 + H, value=99, quantiles=(said,)) for name in "vw"))
        world.clock.now_us = P0 + 2 * H + 59 * S
        await world.scorer.sweep()
        assert await world.ledger.pending() == 2, "the grace is not over"
        world.clock.now_us = P0 + 2 * H + 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 2} and await world.ledger.pending() == 0
        scores = (await world.tally()).scores()
        upper = np.log2(3)
        loss = [
            (0.1 * 2 + 0.5 * 1 + 0.9 * (2 - upper)) / 3,
            (0.0 + 0.5 * 1 + 0.1 * upper) / 3,
        ]
        assert scores == {
            "labels": 2, "unlabelled": 0, "gone": 0, "nmse": pytest.approx(1.0), "mae": pytest.approx(1.0),
            "coverage": 0.5, "below": 0.0, "above": 0.5, "pinball": pytest.approx(np.mean(loss)),
            "width": pytest.approx(upper),
        }  # fmt: skip

    with_world(empty_redis, work)


def test_two_replicas_score_each_label_once(empty_redis: str) -> None:
    async def work(world: World) -> None:
        names = [f"v{i}" for i in range(150)]
        for name in names:
            await given(world, name, events(name, P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, *(answer(name, at_us=P0 + H) for name in names))
        world.clock.now_us = P0 + 3 * H
        replicas = [world, *(World(empty_redis, world.clock) for _ in range(2))]
        for replica in replicas:
            # Each believes that it holds the lease: that is to save work, not to be right.
            replica.scorer._lease = cast(Any, SimpleNamespace(take=_always))
        await asyncio.gather(*(replica.scorer.sweep() for replica in replicas))
        counts = Counter[str]()
        for replica in replicas:
            counts.update(replica.outcomes())
        assert counts["scored"] == 150 and (await world.tally()).scores()["labels"] == 150
        assert parse_adaptive(await world.ledger.adaptive("m1")).outcomes == 150
        for replica in replicas[1:]:
            await replica.link.close()

    with_world(empty_redis, work)


async def _always() -> bool:
    return True


def test_a_settlement_is_all_or_nothing(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        await keep(world, answer("a", at_us=P0 + H), answer("b", at_us=P0 + H))
        column = int(column_of(np.array([3600.0]))[0])
        one, two = await world.ledger.due(column, P0 + 9 * H, 10)
        assert await world.ledger.settle(column, Settlement([one], {"1:1:n": 1.0}, "", "{}"), P0)
        for stale in (
            Settlement([one, two], {"1:1:n": 2.0}, "{}", "{1}"),
            Settlement([two], {"1:1:n": 1.0}, "", "{1}"),
        ):
            assert not await world.ledger.settle(column, stale, P0)
        assert (await world.tally()).cells == {(1, 1): {"n": 1.0}} and await world.ledger.pending() == 1
        assert await world.ledger.settle(column, Settlement([two], {"1:1:n": 1.0}, "{}", "{}"), P0)
        assert (await world.tally()).cells == {(1, 1): {"n": 2.0}}

    with_world(empty_redis, work)


def test_labels_outlive_the_process_and_are_not_taken_twice(empty_redis: str) -> None:
    clock = Clock(P0 + 13 * H)

    async def before(world: World) -> None:
        await given(world, "v", events("v", P0 + S, 100))
        await keep(world, answer(at_us=P0 + 13 * H))

    async def after(world: World) -> None:
        clock.now_us = P0 + 14 * H + 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"scored": 1}
        # The same kind of forecast, the age not yet doubled.
        await keep(world, answer(at_us=P0 + 14 * H + 60 * S))
        assert world.outcomes() == {"scored": 1, "known": 1}
        clock.now_us = P0 + 17 * H
        await keep(world, answer(at_us=P0 + 17 * H))
        assert world.outcomes() == {"scored": 1, "known": 1, "kept": 1}

    with_world(empty_redis, before, clock)
    with_world(empty_redis, after, clock)


def test_deleted_and_replaced_videos_drop_out(empty_redis: str) -> None:
    async def work(world: World) -> None:
        for name in "ab":
            await given(world, name, events(name, P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, *(answer(name, at_us=P0 + H) for name in "ab"))
        for name in "ab":
            await world.store.forget(name)
        await world.store.register("b", Registration(P0 + S, "{}"))
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        scores = (await world.tally()).scores()
        assert (scores["labels"], scores["gone"]) == (0, 2) and scores["nmse"] is None
        assert world.outcomes() == {"kept": 2, "gone": 2}
        assert await world.ledger.adaptive("m1") == ""

    with_world(empty_redis, work)


def test_a_counter_is_waited_for_and_then_given_up(empty_redis: str) -> None:
    def counted(video_id: str, at_us: int, views: int) -> Row:
        return Row(0, video_id, at_us, "counters", (("view", views),))

    async def work(world: World) -> None:
        for name in ("late", "never"):
            await given(world, name, counted(name, P0 + 10 * H, 100))
        world.clock.now_us = P0 + 10 * H
        await keep(world, *(answer(name, at_us=P0 + 10 * H, horizons_us=(10 * H,)) for name in ("late", "never")))
        world.clock.now_us = P0 + 20 * H + 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2} and await world.ledger.pending() == 2
        await world.store.apply({"late": [counted("late", P0 + 20 * H + 50 * S, 200)]})
        await world.scorer.sweep()
        assert await world.ledger.pending() == 2, "looked at again after a fiftieth of the horizon"
        world.clock.now_us = P0 + 20 * H + 15 * 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 1}
        world.clock.now_us = P0 + 21 * H + 61 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 1, "unlabelled": 1}

    with_world(empty_redis, work)


def test_days_that_are_past_are_shown_no_more(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, answer(at_us=P0 + H))
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        for days, labels in ((0, 1), (1, 1), (2, 0)):
            world.clock.now_us = P0 + 3 * H + days * DAY
            assert (await world.tally()).scores()["labels"] == labels
        assert await Report(world.ledger, world.settings, world.clock).read("m1") == {
            "model_version": "m1", "days": 2, "adaptive": True, "pending": 0, "models": [],
        }  # fmt: skip

    with_world(empty_redis, work, quality_days=2)


# What it does.


async def missed_above(world: World, n: int, round_: int) -> None:
    names = [f"{round_}-{i}" for i in range(n)]
    for name in names:
        await given(world, name, events(name, P0 + S, 100), events(name, P0 + H + 60 * S, 900))
    await keep(world, *(answer(name, at_us=world.clock.now_us) for name in names))


def test_outcomes_stretch_the_served_models_intervals(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await world.adaptation.refresh()
        assert world.forecaster.factors is None and world.adaptation.factors("m1") is None
        world.clock.now_us = P0 + H
        await missed_above(world, 20, 0)
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        await world.adaptation.refresh()
        factors = cast(Any, world.forecaster.factors)
        column = int(column_of(np.array([3600.0]))[0])
        expected = np.exp(20 * sum(STEPS) * np.array([-0.1, 0.9]))
        np.testing.assert_allclose(factors[1, column], expected)
        # The next label knows what was in its interval.
        (one,) = labels_of(answer(at_us=P0 + H), DAY, world.adaptation.factors("m1"))
        assert one.stretch == pytest.approx(tuple(expected))
        assert world.adaptation.factors("m2") is None

    with_world(empty_redis, work)


def test_intervals_stay_where_they_are_when_that_is_switched_off(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        await missed_above(world, 3, 0)
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        await world.adaptation.refresh()
        assert world.forecaster.factors is None and world.adaptation.factors("m1") is None
        assert parse_adaptive(await world.ledger.adaptive("m1")).outcomes == 3

    with_world(empty_redis, work, adaptive=False)


def test_a_lease_has_one_holder(empty_redis: str) -> None:
    async def work(world: World) -> None:
        one, two = (Lease(world.link, "lease", 0.2) for _ in range(2))
        assert [await one.take(), await two.take(), await one.take()] == [True, False, True]
        await two.give()
        assert not await two.take()
        await one.give()
        assert await two.take()
        await asyncio.sleep(0.25)
        assert await one.take()

    with_world(empty_redis, work)


def test_over_http(empty_redis: str) -> None:
    """A forecast by HTTP, its outcome by HTTP, and what GET /quality and the metrics then say."""
    clock = Clock(P0 + 2 * H)
    with live(empty_redis, clock=clock, labels=1000, ranking_forecasts=0) as service:
        service.register("v")
        service.post("/events", [{"video_id": "v", "time": T0 + 10, "type": "view", "count": 100}])
        made = service.http.get("/videos/v/forecast", params={"horizons_s": "3600"}).json()
        (forecast,) = made["forecasts"]

        def quality() -> Any:
            return service.http.get("/quality").json()

        wait_until(lambda: quality()["pending"] == 1)
        assert quality()["models"] == []
        clock.now_us += H + 61 * S
        wait_until(lambda: quality()["pending"] == 0)
        report = quality()
        (model,) = report["models"]
        growth = np.log2([(1 + forecast[q]) / 101 for q in ("q0.1", "q0.5", "q0.9")])
        assert report["model_version"] == model["model_version"] == "fa4e"
        assert (model["labels"], model["adapted_to"], model["nmse"]) == (1, 1, None)
        assert (model["mae"], model["below"]) == (pytest.approx(growth[1]), float(growth[0] > 0))
        (cell,) = model["cells"]
        assert (cell["age"], cell["horizon"]) == ("2 to 8 h", "0.5 to 2 h")
        assert cell["width"] == pytest.approx(growth[2] - growth[0]) and cell["stretch"][1] < 1
        told = 'm3tr_quality_mae_log2{horizon="0.5 to 2 h",model_version="fa4e"}'
        wait_until(lambda: told in service.http.get("/metrics").text)
        text = service.http.get("/metrics").text
        assert 'm3tr_labels_total{outcome="scored"} 1.0' in text and promtool_complaints(text) == ""


def test_adaptive_states_are_told_apart_by_model(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, answer(at_us=P0 + H), answer(at_us=P0 + H, model="m2"))
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        assert list(await world.ledger.tallies(P0 + 3 * H)) == ["m2", "m1"]
        assert [parse_adaptive(await world.ledger.adaptive(m)).outcomes for m in ("m1", "m2", "m3")] == [1, 1, 0]
        assert (parse_adaptive("").factors() == Adaptive.new().factors()).all()
        assert N_COLUMNS == 8

    with_world(empty_redis, work)
