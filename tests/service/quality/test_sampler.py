"""Which forecasts become labels: of which videos, when, and how many."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from model.quantiles.calibration import COLD, N_COLUMNS, calibration_row
from service.quality.label import age_step
from service.quality.schedule import Schedule
from tests.service.quality.world import P0, H, S, World, answer, events, given, keep, labels_of, with_world


def test_one_label_per_video_model_horizon_and_step_of_age() -> None:
    def key(**change: Any) -> str:
        arguments = {"at_us": P0 + 21 * H, **change}
        return next(labels_of(answer(**arguments), None)).key

    assert key() == key(at_us=P0 + 35 * H, value=3)
    others = [key(video_id="w"), key(model="m2"), key(horizons_us=(2 * H,)), key(at_us=P0 + 37 * H), key(cold=True)]
    assert len({key(), *others}) == 6
    assert key(cold=True) == key(cold=True, at_us=P0 + 400 * H), "before the first row there is one label only"
    one = next(labels_of(answer(at_us=P0 + 20 * H), None))
    assert age_step(one.key_until_us - 1 - P0) == age_step(20 * H) == age_step(one.key_until_us - P0) - 1


def test_steps_of_age_are_the_calibrations_age_buckets() -> None:
    """The last age bucket has several steps, each twice as long as the one before."""
    ages_h = np.geomspace(0.01, 20_000, 3000)
    rows, steps = calibration_row(ages_h * 3600, np.zeros(3000, np.bool_)), [age_step(round(h * H)) for h in ages_h]
    assert len({*zip(rows.tolist(), steps, strict=True)}) == len({*steps})
    assert [rows.tolist().count(r) > 0 for r in range(COLD)] == [True] * COLD
    young = ages_h < 168
    np.testing.assert_array_equal(rows[young], np.array(steps)[young])


def test_label_of_an_earlier_release_is_read() -> None:
    one = next(labels_of(answer(at_us=P0 + 20 * H, client="ab12"), None))
    packed = msgspec.json.decode(msgspec.json.encode(one))
    assert packed[-1] == "ab12"
    assert msgspec.json.decode(msgspec.json.encode(packed[:-1]), type=type(one)).client == ""


def test_label_is_kept_once(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        one = answer(at_us=P0 + H)
        await keep(world, one, one)
        assert world.outcomes() == {"kept": 1, "known": 1}
        other = World(empty_redis, world.clock)
        await keep(other, one)
        assert other.outcomes() == {"known": 1} and await other.label_store.pending() == 1
        await other.link.close()

    with_world(empty_redis, work)


async def sampled(world: World, until_us: int, step_us: int = 60 * S) -> None:
    """Run the sampler until a time."""
    while world.clock.now_us < until_us:
        world.clock.now_us += step_us
        while await world.sampler.run_once():
            pass


def test_sampler_makes_its_own_forecasts(empty_redis: str) -> None:
    """Each video once per step of its age, at the configured horizons, however often it changes."""

    async def work(world: World) -> None:
        for name in ("v", "w"):
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.clock.now_us = P0 + 20 * S
        for _ in range(60):
            world.sampler.changed([("v", 1), ("w", 1)])
            await world.sampler.run_once()
        assert await world.label_store.pending() == 0
        await sampled(world, P0 + H // 2)
        # 4 and 12 hours; the third horizon is longer than the longest that is kept.
        assert world.outcomes() == {"kept": 4}
        for _ in range(60):
            world.sampler.changed([("v", 2)])
            await world.sampler.run_once()
        assert world.outcomes() == {"kept": 4}
        await sampled(world, P0 + 2 * H)
        assert world.outcomes() == {"kept": 8}
        await sampled(world, P0 + 20 * H - H // 2, H // 3)
        assert world.outcomes() == {"kept": 16}, "steps end at 0.5, 2, 8 and 20 h"
        found = [
            label for column in range(N_COLUMNS) for label in await world.label_store.due(column, P0 + 99 * H, 100)
        ]
        assert {label.horizon_us for label in found} == {4 * H, 12 * H}

    with_world(empty_redis, work, label_horizons_s="14400,43200,86400", label_horizon_s=50_000)


def test_old_video_is_forecast_within_seconds_and_then_once_per_step(empty_redis: str) -> None:
    async def work(world: World) -> None:
        names = [f"v{i}" for i in range(40)]
        for name in names:
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.clock.now_us = P0 + 3 * H
        world.sampler.changed([(name, 1) for name in names])
        await world.sampler.run_once()
        assert world.outcomes().get("kept", 0) < 40, "not all at once"
        await sampled(world, P0 + 3 * H + 20 * S, S)
        assert world.outcomes()["kept"] == 40
        await sampled(world, P0 + 7 * H, 10 * 60 * S)
        assert world.outcomes()["kept"] == 40
        await sampled(world, P0 + 19 * H, 10 * 60 * S)
        assert world.outcomes()["kept"] == 80

    with_world(empty_redis, work, label_horizons_s="3600")


def test_new_video_is_forecast_before_its_first_row_and_at_its_time_in_the_first_step(empty_redis: str) -> None:
    """Its first seconds, in which most first rows come, are not typical of its first half hour."""

    async def work(world: World) -> None:
        names = [f"v{i}" for i in range(20)]
        for name in names:
            await given(world, name)
        world.sampler.changed([(name, 1) for name in names])
        await sampled(world, P0 + 20 * S, S)
        assert world.outcomes() == {"kept": 20}
        await world.store.apply({name: [events(name, P0 + 25 * S, 10)] for name in names})
        await sampled(world, P0 + H // 2, 20 * S)
        found = [
            label for column in range(N_COLUMNS) for label in await world.label_store.due(column, P0 + 99 * H, 100)
        ]
        cold = [label for label in found if label.age_bucket == COLD]
        warm_s = [(label.now_us - P0) / S for label in found if label.age_bucket == 0]
        assert len(cold) == len(warm_s) == 20 and all(label.now_us < P0 + 20 * S for label in cold)
        assert min(warm_s) >= 360 and 700 < np.mean(warm_s) < 1300 and len({*warm_s}) > 5

    with_world(empty_redis, work, label_horizons_s="3600")


def test_deleted_videos_leave_the_schedule(empty_redis: str) -> None:
    async def work(world: World) -> None:
        for name in "ab":
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.sampler.changed([("a", 1), ("b", 1)])
        await world.sampler.run_once()
        world.sampler.changed([("a", 0)])
        await world.store.forget("b")
        await sampled(world, P0 + 2 * H)
        assert world.outcomes() == {} and len(world.sampler._schedule) == 0

    with_world(empty_redis, work)


def test_scheduled_videos_are_drawn_at_random() -> None:
    schedule = Schedule(1000)
    for i in range(20_000):
        if schedule.follows(f"{i}"):
            schedule.plan(f"{i}", P0, P0, made=False)
    assert 400 <= len(schedule) <= 1000
    first = sum(f"{i}" in schedule for i in range(10_000))
    assert 0.3 < first / len(schedule) < 0.7, "early videos are not preferred"


def test_client_may_use_its_share_of_the_capacity(empty_redis: str) -> None:
    async def work(world: World) -> None:
        world.clock.now_us = P0 + H
        many = [answer(f"a{i}", at_us=P0 + H, client="aa") for i in range(300)]
        await keep(world, *many)
        assert world.outcomes() == {"kept": 25, "full": 275}
        await keep(world, answer("other", at_us=P0 + H, client="bb"))
        assert world.outcomes() == {"kept": 26, "full": 275}

    # A capacity of 8,000 is 1,000 per bucket, of which 50 for a twentieth of the horizon.
    with_world(empty_redis, work, labels=8000, label_share=0.5)


def test_capacity_is_bounded_and_spread_over_the_horizon(empty_redis: str) -> None:
    """A capacity of 80 is 10 per bucket; each twentieth of the horizon may use a twentieth of a bucket."""

    async def work(world: World) -> None:
        for step in range(40):
            world.clock.now_us = P0 + H + step * (4 * H // 20 + 1)
            await keep(
                world, *(answer(f"{step}.{i}", at_us=world.clock.now_us, horizons_us=(4 * H,)) for i in range(3))
            )
        assert await world.label_store.pending() == 10
        assert world.outcomes() == {"kept": 10, "full": 110}
        await keep(world, answer("short", at_us=world.clock.now_us, horizons_us=(60 * S,)))
        assert await world.label_store.pending() == 11

    with_world(empty_redis, work, labels=80)
