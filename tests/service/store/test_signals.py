"""Signals in the store: the newest reading of each bin stands, whatever the order, batching and repetition of rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import redis

from model.engagement.bins import bin_index
from model.engagement.types import SIGNAL_MARK
from service.store import keys
from service.store.rows.row import InputRow
from service.store.snapshot import Snapshot
from service.store.store import Registration, Store
from tests.service.store.test_store import P0, REGISTRATION, S, with_store


def reading(at_s: float, views: int | None = None, **signals: float) -> InputRow:
    cells: list[tuple[str, float]] = [] if views is None else [("view", views)]
    cells += [(SIGNAL_MARK + name, value) for name, value in signals.items()]
    return InputRow(0, "v", P0 + round(at_s * S), "counters", tuple(cells))


def stored(url: str, batches: list[list[InputRow]], *, register_at: int = 0) -> Snapshot:
    """Apply batches; the video is registered before batch ``register_at``, and earlier rows are parked."""

    async def work(store: Store) -> Snapshot:
        for i, batch in enumerate([*batches, []]):
            if i == register_at:
                await store.register("v", REGISTRATION)
            if batch:
                await store.apply({"v": batch})
        found = (await store.read_many({"v": None}))["v"]
        assert isinstance(found, Snapshot)
        return found

    return with_store(url, work)


def told(snapshot: Snapshot) -> dict[str, dict[int, float]]:
    return {
        name: dict(zip(readings.bins.tolist(), readings.values.tolist(), strict=True))
        for name, readings in snapshot.history.signals.items()
    }


def test_the_newest_reading_of_a_bin_stands(empty_redis: str) -> None:
    late = 86_400.0
    rows = [
        reading(10, 5, rank=3),
        reading(late, 50, rank=9, heat=0.1),
        reading(late + 60, rank=2.5),
        reading(late + 30, 51, rank=7, heat=-1e15),
    ]
    snapshot = stored(empty_redis, [rows])
    index = int(bin_index(round(late * S)))
    assert index == int(bin_index(round((late + 60) * S)))
    assert told(snapshot) == {"heat": {index: -1e15}, "rank": {10: 3, index: 2.5}}
    assert snapshot.history.totals() == {"view": 51}
    assert snapshot.newest_us == P0 + round((late + 60) * S)


def test_any_order_batching_and_repetition_give_one_history(empty_redis: str) -> None:
    rng = random.Random(5)
    for _ in range(12):
        with redis.Redis.from_url(empty_redis) as client:
            client.flushall()
        ages = [rng.choice([0.0, 0.5, 70.0, 71.0, 3600.0, 3610.0, 3611.0, 400_000.0]) for _ in range(14)]
        rows = [reading(at, rng.randrange(9), rank=rng.randrange(50), heat=rng.random() - 0.5) for at in ages]
        expected: dict[str, dict[int, tuple[int, float]]] = {}
        for row in rows:
            for name, value in row.cells[1:]:
                of = expected.setdefault(name[1:], {})
                index = int(bin_index(row.time_us - P0))
                of[index] = max(of.get(index, (0, 0.0)), (row.time_us, value))
        sent = rows + rng.sample(rows, 5)
        rng.shuffle(sent)
        cuts = sorted(rng.sample(range(1, len(sent)), 3))
        batches = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        found = told(stored(empty_redis, batches, register_at=rng.randrange(3)))
        assert found == {name: {b: v for b, (_, v) in of.items()} for name, of in sorted(expected.items())}


def test_an_old_reading_changes_nothing(empty_redis: str) -> None:
    async def work(store: Store) -> list[int]:
        versions = []
        await store.register("v", REGISTRATION)
        for row in (reading(90, rank=4), reading(90, rank=3), reading(90, rank=4), reading(89.9, rank=8)):
            await store.apply({"v": [row]})
            found = (await store.read_many({"v": None}))["v"]
            assert isinstance(found, Snapshot)
            versions.append(found.version)
        return versions

    first, *others = with_store(empty_redis, work)
    assert others == [first] * 3


@pytest.mark.parametrize("damaged", [False, True])
def test_deletion_leaves_no_reading(empty_redis: str, damaged: bool) -> None:
    async def work(store: Store) -> None:
        await store.register("v", Registration(P0, "{}"))
        await store.apply({"v": [reading(30, 1, rank=4), reading(90_000, heat=2)]})
        if damaged:
            with redis.Redis.from_url(empty_redis) as client:
                client.set(keys.video_prefix("v") + "meta", b"\x01")
        assert await store.forget("v")

    with_store(empty_redis, work)
    with redis.Redis.from_url(empty_redis) as client:
        assert [key for key in client.scan_iter() if b"bins:" in key] == []


@pytest.mark.parametrize(("field", "value"), [("5:rank", "no"), ("x:rank", "9 1"), ("99999:rank", "9 1")])
def test_a_damaged_reading_is_named(empty_redis: str, field: str, value: str) -> None:
    async def work(store: Store) -> Any:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [reading(5, rank=4)]})
        with redis.Redis.from_url(empty_redis) as client:
            client.hset(keys.video_prefix("v") + "bins:signals:0", field, value)
        return (await store.read_many({"v": None}))["v"]

    assert not isinstance(with_store(empty_redis, work), Snapshot)


def test_values_are_exact(empty_redis: str) -> None:
    values = [0.1, 1 / 3, -2.5e-12, 123456789.123456789, 1e15, 5e-324]
    snapshot = stored(empty_redis, [[reading(i, x=value) for i, value in enumerate(values)]])
    np.testing.assert_array_equal(snapshot.history.signals["x"].values, values)
