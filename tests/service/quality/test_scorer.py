"""Labels are scored once and shown, and stretch intervals."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from model.quantiles.adaptive import RAMP, STEPS, Adaptive
from model.quantiles.calibration import N_COLUMNS, calibration_column
from service.quality.label_store import Settlement, parse_adaptive
from service.quality.report import QualityReport
from service.store.keys import SAMPLING_LEASE
from service.store.redis.lease import Lease
from service.store.rows.row import InputRow
from service.store.store import Registration
from tests.service.quality.world import DAY, P0, Clock, H, S, World, answer, events, given, keep, labels_of, with_world
from tests.service.running import T0, live, wait_until
from tests.service.test_metrics import promtool_complaints


def test_scores_of_two_labels(empty_redis: str) -> None:
    """From 99 to 399 is two doublings; the median was 199, and the upper end 299."""

    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + 10 * S, 99), events("v", P0 + H + 60 * S, 300))
        await given(world, "w", events("w", P0 + 10 * S, 99))
        world.clock.now_us = P0 + H
        said = (99, 199, 299)
        await keep(world, *(answer(name, at_us=P0 + H, value=99, quantiles=(said,)) for name in "vw"))
        world.clock.now_us = P0 + 2 * H + 59 * S
        await world.scorer.sweep()
        assert await world.label_store.pending() == 2, "the grace period is not over"
        world.clock.now_us = P0 + 2 * H + 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 2} and await world.label_store.pending() == 0
        scores = (await world.score_sums()).scores()
        upper = np.log2(3)
        loss = [
            (0.1 * 2 + 0.5 * 1 + 0.9 * (2 - upper)) / 3,
            (0.0 + 0.5 * 1 + 0.1 * upper) / 3,
        ]
        assert scores == {
            "labels": 2,
            "unlabelled": 0,
            "gone": 0,
            "nmse": pytest.approx(((np.log2(2.01) - 2) ** 2 + np.log2(2.01) ** 2) / 2),
            "mae": pytest.approx(1.0),
            "coverage": 0.5,
            "below": 0.0,
            "above": 0.5,
            "pinball": pytest.approx(np.mean(loss)),
            "width": pytest.approx(upper),
            "coverage_50": 0.0,
            "coverage_90": 0.5,
            "up_to": {"0.05": 0.0, "0.1": 0.5, "0.25": 0.5, "0.5": 0.5, "0.75": 0.5, "0.9": 0.5, "0.95": 0.5},
        }

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
            # Both believe that they hold the lease, which saves work and is not needed for correctness.
            replica.scorer._lease = cast(Any, SimpleNamespace(acquire=_always))
        await asyncio.gather(*(replica.scorer.sweep() for replica in replicas))
        counts = Counter[str]()
        for replica in replicas:
            counts.update(replica.outcomes())
        assert counts["scored"] == 150 and (await world.score_sums()).scores()["labels"] == 150
        assert parse_adaptive(await world.label_store.adaptive("m1", "view")).outcomes == 150
        for replica in replicas[1:]:
            await replica.link.close()

    with_world(empty_redis, work)


async def _always() -> bool:
    return True


def test_settlement_is_atomic(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        await keep(world, answer("a", at_us=P0 + H), answer("b", at_us=P0 + H))
        column = int(calibration_column(np.array([3600.0]))[0])
        one, two = await world.label_store.due(column, P0 + 9 * H, 10)
        assert await world.label_store.settle(column, Settlement([one], {"view|1:1:n": 1.0}, "", "{}"), P0)
        for stale in (
            Settlement([one, two], {"view|1:1:n": 2.0}, "{}", "{1}"),
            Settlement([two], {"view|1:1:n": 1.0}, "", "{1}"),
        ):
            assert not await world.label_store.settle(column, stale, P0)
        assert (await world.score_sums()).cells == {(1, 1): {"n": 1.0}} and await world.label_store.pending() == 1
        assert await world.label_store.settle(column, Settlement([two], {"view|1:1:n": 1.0}, "{}", "{}"), P0)
        assert (await world.score_sums()).cells == {(1, 1): {"n": 2.0}}

    with_world(empty_redis, work)


def test_labels_survive_a_restart_and_are_not_kept_twice(empty_redis: str) -> None:
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


def test_labels_of_deleted_and_replaced_videos_are_dropped(empty_redis: str) -> None:
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
        scores = (await world.score_sums()).scores()
        assert (scores["labels"], scores["gone"]) == (0, 2) and scores["nmse"] is None
        assert world.outcomes() == {"kept": 2, "gone": 2}
        assert await world.label_store.adaptive("m1", "view") == ""

    with_world(empty_redis, work)


def test_missing_counter_is_awaited_and_then_unlabelled(empty_redis: str) -> None:
    def counted(video_id: str, at_us: int, views: int) -> InputRow:
        return InputRow(0, video_id, at_us, "counters", (("view", views),))

    async def work(world: World) -> None:
        for name in ("late", "never"):
            await given(world, name, counted(name, P0 + 10 * H, 100))
        world.clock.now_us = P0 + 10 * H
        await keep(world, *(answer(name, at_us=P0 + 10 * H, horizons_us=(10 * H,)) for name in ("late", "never")))
        world.clock.now_us = P0 + 20 * H + 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2} and await world.label_store.pending() == 2
        await world.store.apply({"late": [counted("late", P0 + 20 * H + 50 * S, 200)]})
        await world.scorer.sweep()
        assert await world.label_store.pending() == 2, "checked again after a fiftieth of the horizon"
        world.clock.now_us = P0 + 20 * H + 15 * 60 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 1}
        world.clock.now_us = P0 + 21 * H + 61 * S
        await world.scorer.sweep()
        assert world.outcomes() == {"kept": 2, "scored": 1, "unlabelled": 1}

    with_world(empty_redis, work)


def test_scores_of_past_days_are_not_shown(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, answer(at_us=P0 + H))
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        for days, labels in ((0, 1), (1, 1), (2, 0)):
            world.clock.now_us = P0 + 3 * H + days * DAY
            assert (await world.score_sums()).scores()["labels"] == labels
        assert await QualityReport(world.label_store, world.settings, world.clock).read("m1", ("view",)) == {
            "model_version": "m1",
            "days": 2,
            "adaptive": True,
            "pending": 0,
            "models": [],
        }

    with_world(empty_redis, work, quality_days=2)


async def missed_above(world: World, n: int, round_: int) -> None:
    names = [f"{round_}-{i}" for i in range(n)]
    for name in names:
        await given(world, name, events(name, P0 + S, 100), events(name, P0 + H + 60 * S, 900))
    await keep(world, *(answer(name, at_us=world.clock.now_us) for name in names))


def test_outcomes_stretch_the_active_models_intervals(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await world.adaptation.refresh()
        assert world.forecaster.factors is None and world.adaptation.factors("m1", "view") is None
        world.clock.now_us = P0 + H
        await missed_above(world, 20, 0)
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        await world.adaptation.refresh()
        factors = cast(Any, world.forecaster.factors)
        column = int(calibration_column(np.array([3600.0]))[0])
        # Each further outcome counts less.
        expected = np.exp(sum(range(1, 21)) / RAMP * sum(STEPS) * np.array([-0.05, -0.1, -0.25, 0.75, 0.9, 0.95]))
        np.testing.assert_allclose(factors[1, column], expected)
        # The next label holds the stretch of its interval.
        (one,) = labels_of(answer(at_us=P0 + H), world.adaptation.factors("m1", "view"))
        assert one.stretch == pytest.approx(tuple(expected))
        assert world.adaptation.factors("m2", "view") is None

    with_world(empty_redis, work)


def test_intervals_do_not_adapt_when_switched_off(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        await missed_above(world, 3, 0)
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        await world.adaptation.refresh()
        assert world.forecaster.factors is None and world.adaptation.factors("m1", "view") is None
        assert parse_adaptive(await world.label_store.adaptive("m1", "view")).outcomes == 3

    with_world(empty_redis, work, adaptive=False)


def test_lease_has_one_holder(empty_redis: str) -> None:
    async def work(world: World) -> None:
        one, two = (Lease(world.link, "lease", 0.2) for _ in range(2))
        assert [await one.acquire(), await two.acquire(), await one.acquire()] == [True, False, True]
        await two.release()
        assert not await two.acquire()
        await one.release()
        assert await two.acquire()
        await asyncio.sleep(0.25)
        assert await one.acquire()

    with_world(empty_redis, work)


@pytest.mark.slow
def test_label_is_scored_over_http(empty_redis: str) -> None:
    """A video and its rows by HTTP, and then the scores in GET /quality and in the metrics."""
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
        assert quality()["pending"] == 0, "a requested forecast makes no label"
        # The sampler forecasts the video before the end of its step.
        clock.now_us = P0 + 8 * H - 1
        wait_until(lambda: quality()["pending"] == 1)
        (forecast,) = service.http.get("/videos/v/forecast", params={"horizons_s": "3600"}).json()["forecasts"]
        assert quality()["models"] == []
        clock.now_us += H + 61 * S
        # By now the sampler may have made the next label, so the number of pending ones need not fall to 0.
        wait_until(lambda: quality()["models"])
        report = quality()
        (model,) = report["models"]
        growth = np.log2([(1 + forecast[q]) / 101 for q in ("q0.1", "q0.5", "q0.9")])
        assert report["model_version"] == model["model_version"] == "fa4e"
        assert (model["labels"], model["adapted_to"], model["nmse"]) == (1, 1, None)
        assert (model["mae"], model["below"]) == (pytest.approx(growth[1]), float(growth[0] > 0))
        (cell,) = model["cells"]
        assert (cell["age"], cell["horizon"]) == ("2 to 8 h", "0.5 to 2 h") and model["clients"] == 1
        assert cell["width"] == pytest.approx(growth[2] - growth[0]) and cell["stretch"][1] < 1
        told = 'm3tr_quality_mae_log2{horizon="0.5 to 2 h",metric="total",model_version="fa4e"}'
        wait_until(lambda: told in service.http.get("/metrics").text)
        text = service.http.get("/metrics").text
        assert 'm3tr_labels_total{outcome="scored"} 1.0' in text and promtool_complaints(text) == ""


def test_each_model_has_its_own_adaptive_state(empty_redis: str) -> None:
    async def work(world: World) -> None:
        await given(world, "v", events("v", P0 + S, 100))
        world.clock.now_us = P0 + H
        await keep(world, answer(at_us=P0 + H), answer(at_us=P0 + H, model="m2"))
        world.clock.now_us = P0 + 3 * H
        await world.scorer.sweep()
        assert list(await world.label_store.scores_by_model(P0 + 3 * H)) == ["m2", "m1"]
        assert [parse_adaptive(await world.label_store.adaptive(m, "view")).outcomes for m in ("m1", "m2", "m3")] == [
            1,
            1,
            0,
        ]
        assert (parse_adaptive("").factors() == Adaptive.new().factors()).all()
        assert N_COLUMNS == 8

    with_world(empty_redis, work)
