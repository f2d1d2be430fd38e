"""The life of a label: kept, scored once, told, and what it does to intervals."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import pytest

from model.engagement.bins import HOUR_US
from model.engagement.history import History
from model.engagement.video import Video
from model.forecast import Forecast, Request
from model.quantiles.adaptive import RAMP, STEPS, Adaptive
from model.quantiles.calibration import COLD, N_COLUMNS, column_of, row_of
from service.context import new_metrics
from service.forecasts.answer import Answer
from service.problems import NotFound
from service.quality.adaptation import Adaptation
from service.quality.label import age_step, labels_of
from service.quality.label_store import Ledger, Settlement, parse_adaptive
from service.quality.report import Report
from service.quality.sampler import Sampler
from service.quality.schedule import Schedule
from service.quality.scorer import Scorer
from service.quality.scores import Tally
from service.settings import Settings
from service.store.keys import SAMPLING_LEASE
from service.store.redis.connection import Link
from service.store.redis.lease import Lease
from service.store.row import Row
from service.store.snapshot import Snapshot, signed
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
        self.ledger = Ledger(
            self.link, room=self.settings.labels, days=self.settings.quality_days, share=self.settings.label_share
        )
        self.forecaster = FakeForecaster()
        deployment: Any = Deployed("m1", self.forecaster)
        self.adaptation = Adaptation(self.ledger, lambda: deployment, self.settings, clock)
        engine: Any = SimpleNamespace(active=deployment, forecast=self.forecast)
        self.store_lease = Lease(self.link, "m3tr:{labels}:sampling", 60)
        self.sampler = Sampler(
            self.ledger,
            self.store.forgotten,
            self.adaptation,
            engine,
            self.store,
            self.store_lease,
            self.settings,
            self.metrics,
            clock,
        )
        lease = Lease(self.link, "m3tr:{labels}:lease", 60)
        self.scorer = Scorer(self.ledger, self.store, lease, self.settings, self.metrics, clock)

    async def forecast(self, video_id: str, at_us: int | None, horizons_us: tuple[int, ...]) -> Answer:
        snapshot = await self.store.read(video_id)
        if snapshot is None:
            raise NotFound("gone")
        request = Request(snapshot.video, snapshot.history, self.clock.now_us, horizons_us, snapshot.client)
        return Answer(snapshot, self.forecaster._one(request), "m1", as_of_bins=False, stale=False)

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
    client: str = "",
    cold: bool = False,
) -> Answer:
    counts = {"view": round(value)}
    made = Forecast(at_us, metric, value, counts, horizons_us, np.array(quantiles, float), {}, [], cold, [], 0.0)
    snapshot = Snapshot(1, Video(video_id, P0), History(), None, client=client)
    return Answer(snapshot, made, model, as_of_bins=False, stale=False)


def events(video_id: str, at_us: int, count: int, kind: str = "view") -> Row:
    return Row(0, video_id, at_us, "events", ((kind, count),))


async def given(world: World, video_id: str, *rows: Row, client: str = "") -> None:
    await world.store.register(video_id, Registration(P0, signed("{}", client)))
    if rows:
        await world.store.apply({video_id: list(rows)})


async def keep(world: World, *answers: Answer) -> None:
    await world.sampler.keep(answers)


# What is kept.


def test_one_forecast_a_video_model_horizon_and_step_of_age() -> None:
    def key(**change: Any) -> str:
        arguments = {"at_us": P0 + 21 * H, **change}
        return next(labels_of(answer(**arguments), None)).key

    assert key() == key(at_us=P0 + 35 * H, value=3)
    others = [key(video_id="w"), key(model="m2"), key(horizons_us=(2 * H,)), key(at_us=P0 + 37 * H), key(cold=True)]
    assert len({key(), *others}) == 6
    assert key(cold=True) == key(cold=True, at_us=P0 + 400 * H), "before the first row a video is one cell's"
    one = next(labels_of(answer(at_us=P0 + 20 * H), None))
    assert age_step(one.key_until_us - 1 - P0) == age_step(20 * H) == age_step(one.key_until_us - P0) - 1


def test_a_video_is_one_outcome_in_a_cell() -> None:
    """Steps are the calibration's rows, but that the last row has several, each twice as long."""
    ages_h = np.geomspace(0.01, 20_000, 3000)
    rows, steps = row_of(ages_h * 3600, np.zeros(3000, np.bool_)), [age_step(round(h * H)) for h in ages_h]
    assert len({*zip(rows.tolist(), steps, strict=True)}) == len({*steps})
    assert [rows.tolist().count(r) > 0 for r in range(COLD)] == [True] * COLD
    young = ages_h < 168
    np.testing.assert_array_equal(rows[young], np.array(steps)[young])


def test_a_label_of_an_earlier_release_is_read() -> None:
    one = next(labels_of(answer(at_us=P0 + 20 * H, client="ab12"), None))
    packed = msgspec.json.decode(msgspec.json.encode(one))
    assert packed[-1] == "ab12"
    assert msgspec.json.decode(msgspec.json.encode(packed[:-1]), type=type(one)).client == ""


def test_kept_once(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        one = answer(at_us=P0 + H)
        await keep(world, one, one)
        assert world.outcomes() == {"kept": 1, "known": 1}
        other = World(empty_redis, world.clock)
        await keep(other, one)
        assert other.outcomes() == {"known": 1} and await other.ledger.pending() == 1
        await other.link.close()

    with_world(empty_redis, work)


async def sampled(world: World, until_us: int, step_us: int = 60 * S) -> None:
    """Rounds until a time."""
    while world.clock.now_us < until_us:
        world.clock.now_us += step_us
        while await world.sampler.round():
            pass


def test_forecasts_are_the_services_own(empty_redis: str) -> None:
    """Each video once in each step of its age, at the service's horizons, however often there is news of it."""

    async def work(world: World) -> None:
        for name in ("v", "w"):
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.clock.now_us = P0 + 20 * S
        for _ in range(60):
            world.sampler.changed([("v", 1), ("w", 1)])
            await world.sampler.round()
        assert await world.ledger.pending() == 0
        await sampled(world, P0 + H // 2)
        # 4 and 12 hours, and the third is longer than what is kept.
        assert world.outcomes() == {"kept": 4}
        for _ in range(60):
            world.sampler.changed([("v", 2)])
            await world.sampler.round()
        assert world.outcomes() == {"kept": 4}
        await sampled(world, P0 + 2 * H)
        assert world.outcomes() == {"kept": 8}
        await sampled(world, P0 + 20 * H - H // 2, H // 3)
        assert world.outcomes() == {"kept": 16}, "steps end at 0.5, 2, 8 and 20 h"
        found = [label for column in range(N_COLUMNS) for label in await world.ledger.due(column, P0 + 99 * H, 100)]
        assert {label.horizon_us for label in found} == {4 * H, 12 * H}

    with_world(empty_redis, work, label_horizons_s="14400,43200,86400", label_horizon_s=50_000)


def test_a_video_that_is_met_late_is_asked_within_seconds_and_then_once_a_step(empty_redis: str) -> None:
    async def work(world: World) -> None:
        names = [f"v{i}" for i in range(40)]
        for name in names:
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.clock.now_us = P0 + 3 * H
        world.sampler.changed([(name, 1) for name in names])
        await world.sampler.round()
        assert world.outcomes().get("kept", 0) < 40, "not all at once"
        await sampled(world, P0 + 3 * H + 20 * S, S)
        assert world.outcomes()["kept"] == 40
        await sampled(world, P0 + 7 * H, 10 * 60 * S)
        assert world.outcomes()["kept"] == 40
        await sampled(world, P0 + 19 * H, 10 * 60 * S)
        assert world.outcomes()["kept"] == 80

    with_world(empty_redis, work, label_horizons_s="3600")


def test_a_new_video_is_asked_before_its_first_row_and_at_its_moment_after_it(empty_redis: str) -> None:
    """Its first seconds, in which most first rows come, would stand for half an hour."""

    async def work(world: World) -> None:
        names = [f"v{i}" for i in range(20)]
        for name in names:
            await given(world, name)
        world.sampler.changed([(name, 1) for name in names])
        await sampled(world, P0 + 20 * S, S)
        assert world.outcomes() == {"kept": 20}
        await world.store.apply({name: [events(name, P0 + 25 * S, 10)] for name in names})
        await sampled(world, P0 + H // 2, 20 * S)
        found = [label for column in range(N_COLUMNS) for label in await world.ledger.due(column, P0 + 99 * H, 100)]
        cold = [label for label in found if label.row == COLD]
        warm_s = [(label.now_us - P0) / S for label in found if label.row == 0]
        assert len(cold) == len(warm_s) == 20 and all(label.now_us < P0 + 20 * S for label in cold)
        assert min(warm_s) >= 360 and 700 < np.mean(warm_s) < 1300 and len({*warm_s}) > 5

    with_world(empty_redis, work, label_horizons_s="3600")


def test_deleted_videos_are_followed_no_more(empty_redis: str) -> None:
    async def work(world: World) -> None:
        for name in "ab":
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.sampler.changed([("a", 1), ("b", 1)])
        await world.sampler.round()
        world.sampler.changed([("a", 0)])
        await world.store.forget("b")
        await sampled(world, P0 + 2 * H)
        assert world.outcomes() == {} and len(world.sampler._schedule) == 0

    with_world(empty_redis, work)


def test_whom_to_follow_is_drawn() -> None:
    schedule = Schedule(1000)
    for i in range(20_000):
        if schedule.follows(f"{i}"):
            schedule.plan(f"{i}", P0, P0, made=False)
    assert 400 <= len(schedule) <= 1000
    first = sum(f"{i}" in schedule for i in range(10_000))
    assert 0.3 < first / len(schedule) < 0.7, "who came first has no better place"


def test_a_client_takes_its_share_of_the_room(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        many = [answer(f"a{i}", at_us=P0 + H, client="aa") for i in range(300)]
        await keep(world, *many)
        assert world.outcomes() == {"kept": 25, "full": 275}
        await keep(world, answer("other", at_us=P0 + H, client="bb"))
        assert world.outcomes() == {"kept": 26, "full": 275}

    # 8,000 places are 1,000 a column, of which 50 for a twentieth of the horizon.
    with_world(empty_redis, work, labels=8000, label_share=0.5)


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
        # The same kind of forecast, in the same step of age.
        await keep(world, answer(at_us=P0 + 14 * H + 60 * S))
        assert world.outcomes() == {"scored": 1, "known": 1}
        clock.now_us = P0 + 20 * H
        await keep(world, answer(at_us=P0 + 20 * H))
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
        # Each of the first outcomes counts less.
        expected = np.exp(sum(range(1, 21)) / RAMP * sum(STEPS) * np.array([-0.1, 0.9]))
        np.testing.assert_allclose(factors[1, column], expected)
        # The next label knows what was in its interval.
        (one,) = labels_of(answer(at_us=P0 + H), world.adaptation.factors("m1"))
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
    with live(empty_redis, clock=clock, labels=1000, ranking_forecasts=0, label_horizons_s="3600") as service:

        def quality() -> Any:
            return service.http.get("/quality").json()

        wait_until(lambda: service.redis.exists(SAMPLING_LEASE))
        service.register("v")
        service.post("/events", [{"video_id": "v", "time": T0 + 10, "type": "view", "count": 100}])
        time.sleep(2)
        for horizon_s in range(1, 61):
            service.http.get("/videos/v/forecast", params={"horizons_s": str(horizon_s)}).raise_for_status()
        assert quality()["pending"] == 0, "what is asked for makes no label"
        # At the end of the step it is made at the latest.
        clock.now_us = P0 + 8 * H - 1
        wait_until(lambda: quality()["pending"] == 1)
        (forecast,) = service.http.get("/videos/v/forecast", params={"horizons_s": "3600"}).json()["forecasts"]
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
        assert (cell["age"], cell["horizon"]) == ("2 to 8 h", "0.5 to 2 h") and model["clients"] == 1
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
