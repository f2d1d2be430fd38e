"""Each metric of a bundle has its own labels, scores and adaptive intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.quality.label_store import parse_adaptive
from service.quality.report import QualityReport
from service.quality.scores import ScoresOfModel
from tests.service.quality.world import P0, Clock, H, S, World, events, given, with_world

pytestmark = pytest.mark.slow

METRICS = ("view", "like")


def scored(empty_redis: str, **options: Any) -> tuple[World, dict[str, Any], list[tuple[str, str, float]]]:
    """A world after the sampler's forecasts of 20 videos have been scored, its report, and its Prometheus samples."""

    async def work(world: World) -> tuple[World, dict[str, Any], list[tuple[str, str, float]]]:
        for i in range(20):
            rows = [events(f"v{i}", P0 + S, 100), events(f"v{i}", P0 + 2 * S, 7, "like")]
            await given(world, f"v{i}", *rows, client="c")
            world.sampler.changed([(f"v{i}", 1)])
        for minutes in (10, 20, 40, 60, 100, 150):
            world.clock.now_us = P0 + minutes * 60 * S
            for _ in range(20):
                await world.sampler.run_once()
        for i in range(20):
            await world.store.apply({f"v{i}": [events(f"v{i}", P0 + 11 * 60 * S, 10**9, "like")]})
        world.clock.now_us = P0 + 20 * H
        await world.scorer.sweep()
        await world.adaptation.refresh()
        report = await QualityReport(world.label_store, world.settings, world.clock).read("m1", METRICS)
        samples = [
            (family.name, sample.labels["metric"], sample.value)
            for family in world.adaptation.readings()
            for sample in family.samples
        ]
        views, likes = [parse_adaptive(await world.label_store.adaptive("m1", name, "c")) for name in METRICS]
        assert views.outcomes == likes.outcomes > 0
        assert not np.array_equal(views.factors(), likes.factors()), "views never grew, likes did by far"
        assert world.adaptation.factors("m1", "view", "c") is not None
        return world, report, samples

    clock = Clock()
    return with_world(
        empty_redis, work, clock, metrics=METRICS, label_forecasts=1000, label_horizons_s="3600", **options
    )


def test_each_metric_is_scored_and_adapts_by_itself(empty_redis: str) -> None:
    world, report, samples = scored(empty_redis)
    views, likes = report["models"]
    assert (views["metric"], likes["metric"]) == METRICS
    assert views["labels"] == likes["labels"] > 0
    assert views["mae"] != likes["mae"]
    assert {metric for _, metric, _ in samples} == set(METRICS)
    assert {name for name, _, _ in samples} >= {"m3tr_quality_labels", "m3tr_quality_mae_log2"}
    assert set(world.forecaster.adapted) == set(METRICS)


def test_fields_of_an_earlier_release_have_no_metric() -> None:
    scores = ScoresOfModel()
    scores.add({"1:2:n": 3.0, "likes|1:2:n": 2.0, "a%7Cb|1:2:n": 1.0, "nonsense": 9.0})
    assert {metric: sums.scores()["labels"] for metric, sums in scores.by_metric.items()} == {
        "": 3,
        "likes": 2,
        "a|b": 1,
    }
    assert [metric for metric, _ in scores.sorted(("likes",))] == ["likes", "", "a|b"]
