"""Which forecasts are kept as labels: of which videos, when, and how many."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from model.quantiles.calibration import COLD, N_COLUMNS, calibration_row
from service.quality.label import age_step, labels_of
from service.quality.schedule import Schedule
from tests.service.quality.world import P0, H, S, World, answer, events, given, keep, with_world


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
    rows, steps = calibration_row(ages_h * 3600, np.zeros(3000, np.bool_)), [age_step(round(h * H)) for h in ages_h]
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
        assert other.outcomes() == {"known": 1} and await other.label_store.pending() == 1
        await other.link.close()

    with_world(empty_redis, work)


async def sampled(world: World, until_us: int, step_us: int = 60 * S) -> None:
    """Rounds until a time."""
    while world.clock.now_us < until_us:
        world.clock.now_us += step_us
        while await world.sampler.run_once():
            pass


def test_forecasts_are_the_services_own(empty_redis: str) -> None:
    """Each video once in each step of its age, at the service's horizons, however often there is news of it."""

    async def work(world: World) -> None:
        for name in ("v", "w"):
            await given(world, name, events(name, P0 + 10 * S, 100))
        world.clock.now_us = P0 + 20 * S
        for _ in range(60):
            world.sampler.changed([("v", 1), ("w", 1)])
            await world.sampler.run_once()
        assert await world.label_store.pending() == 0
        await sampled(world, P0 + H // 2)
        # 4 and 12 hours, and the third is longer than what is kept.
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


def test_a_video_that_is_met_late_is_asked_within_seconds_and_then_once_a_step(empty_redis: str) -> None:
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
        found = [
            label for column in range(N_COLUMNS) for label in await world.label_store.due(column, P0 + 99 * H, 100)
        ]
        cold = [label for label in found if label.age_bucket == COLD]
        warm_s = [(label.now_us - P0) / S for label in found if label.age_bucket == 0]
        assert len(cold) == len(warm_s) == 20 and all(label.now_us < P0 + 20 * S for label in cold)
        assert min(warm_s) >= 360 and 700 < np.mean(warm_s) < 1300 and len({*warm_s}) > 5

    with_world(empty_redis, work, label_horizons_s="3600")


def test_deleted_videos_are_followed_no_more(empty_redis: str) -> None:
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
        assert await world.label_store.pending() == 10
        assert world.outcomes() == {"kept": 10, "full": 110}
        await keep(world, answer("short", at_us=world.clock.now_us, horizons_us=(60 * S,)))
        assert await world.label_store.pending() == 11

    with_world(empty_redis, work, labels=80)


# What is scored.
