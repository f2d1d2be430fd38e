"""The store's semantics, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.bank.tombstone import tombstone
from model.engagement.bins import EDGES_US, N_BINS, bin_index
from service.problems import Conflict
from service.settings import Settings
from service.store import keys
from service.store.functions import connect
from service.store.rows.row import InputRow
from service.store.rows.row_fields import MAX_COUNT
from service.store.store import Registration, Store
from service.wiring import new_metrics

T = TypeVar("T")
P0 = 1_760_000_000_000_000
S = 1_000_000
REGISTRATION = Registration(P0, "{}")


def with_store(url: str, work: Callable[[Store], Awaitable[T]], **options: Any) -> T:
    async def body() -> T:
        chosen = Settings(bundle=Path("unused"), **options)
        metrics = new_metrics(chosen)
        link = connect(url, metrics, deadline_s=5, connections=8)
        try:
            return await work(Store(link, chosen, metrics))
        finally:
            await link.close()

    return asyncio.run(body())


def event(
    at_s: float, kind: str = "view", count: int = 1, id: str | None = None, reach: int = 0, video: str = "v"
) -> InputRow:
    return InputRow(0, video, P0 + round(at_s * S), "events", ((kind, count),), reach, id)


def counters(at_s: float, id: str | None = None, **cells: int) -> InputRow:
    return InputRow(0, "v", P0 + round(at_s * S), "counters", tuple(cells.items()), 0, id)


def cells(url: str, video: str = "v") -> dict[str, int]:
    prefix = keys.video_prefix(video) + "bins:"
    found: dict[str, int] = {}
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            if key.decode().startswith(prefix):
                kind, block = key.decode().removeprefix(prefix).rsplit(":", 1)
                for name, value in client.hgetall(key).items():
                    assert int(name) // 128 == int(block)
                    found[f"{int(name)}:{kind}"] = int(value)
        packed = client.get(keys.video_prefix(video) + "meta")
    for kind, mode, _, _, open_bin, total in _by(msgspec.msgpack.decode(packed)[6:], 6) if packed else ():
        if open_bin >= 0:
            assert (mode == 1 or kind == "reach") and f"{open_bin}:{kind}" not in found
            found[f"{open_bin}:{kind}"] = total
    return found


def _by(flat: list[Any], n: int) -> list[list[Any]]:
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def version(url: str, video: str = "v") -> int:
    with redis.Redis.from_url(url) as client:
        packed = client.get(keys.video_prefix(video) + "meta")
    return msgspec.msgpack.decode(packed)[2] if packed else 0


ROWS = st.lists(
    st.tuples(
        st.floats(0, 40 * 86400),
        st.sampled_from(["view", "like"]),
        st.integers(1, 10**9),
        st.integers(0, 10**6),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, data=st.data())
def test_any_order_batching_and_duplication_give_one_histogram(
    empty_redis: str, rows: list[Any], data: st.DataObject
) -> None:
    with redis.Redis.from_url(empty_redis) as client:
        client.flushall()
    events = [event(t, k, n, f"id{i}" if has_id else None, reach) for i, (t, k, n, reach, has_id) in enumerate(rows)]
    expected: Counter[str] = Counter()
    for row in events:
        index = int(bin_index(row.time_us - P0))
        expected[f"{index}:{row.cells[0][0]}"] += int(row.cells[0][1])
        expected[f"{index}:reach"] += row.reach
    again = (
        data.draw(st.lists(st.sampled_from([r for r in events if r.id]), max_size=10))
        if any(r.id for r in events)
        else []
    )
    deliveries = data.draw(st.permutations(events)) + again
    # A duplicate may come at any time after the first delivery, or in the same batch.
    sizes = data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=len(deliveries)))
    register_at = data.draw(st.integers(0, len(sizes)))

    async def work(store: Store) -> None:
        left, step = list(deliveries), 0
        while left or step <= register_at:
            if step == register_at:
                await store.register("v", REGISTRATION)
            size = sizes[step % len(sizes)]
            batch, left = left[:size], left[size:]
            if batch:
                result = (await store.apply({"v": batch}))["v"]
                assert not result.outcome.rejections
            step += 1

    with_store(empty_redis, work)
    assert cells(empty_redis) == {field: n for field, n in expected.items() if n}


def test_bins_are_the_models_bins(empty_redis: str) -> None:
    ages = np.unique(np.concatenate([EDGES_US[1:] - 1, EDGES_US, EDGES_US + 1, [EDGES_US[-1] * 2]]))
    rows = [InputRow(0, "v", P0 + int(a), "counters", (("view", i),)) for i, a in enumerate(ages)]

    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": rows})

    with_store(empty_redis, work)
    largest: dict[str, int] = {}
    for i, index in enumerate(bin_index(ages)):
        largest[f"{index}:view"] = i
    assert cells(empty_redis) == largest
    assert max(int(field.split(":")[0]) for field in largest) == N_BINS - 1


def test_parked_rows_count_as_if_the_video_had_been_registered_first(empty_redis: str) -> None:
    rows = [event(5, id="a", reach=3), event(5, id="b"), event(70, "like"), event(-1), counters(9, comment=4)]

    async def in_order(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": rows})

    async def parked(store: Store) -> None:
        first = (await store.apply({"v": rows}))["v"]
        assert (first.outcome.parked, first.version) == (5, None)
        again = (await store.apply({"v": rows[:2]}))["v"]
        assert (again.outcome.parked, again.outcome.duplicate) == (0, 2)
        applied = await store.register("v", REGISTRATION)
        assert (applied.parked_applied, applied.parked_rejected) == (4, 1)
        late = (await store.apply({"v": rows[:2]}))["v"]
        assert (late.outcome.accepted, late.outcome.duplicate) == (0, 2)

    with_store(empty_redis, in_order)
    expected = cells(empty_redis)
    with redis.Redis.from_url(empty_redis) as client:
        client.flushall()
        with_store(empty_redis, parked)
        assert cells(empty_redis) == expected
        assert not client.exists(keys.PARKED, *[keys.video_prefix("v") + name for name in ("parked", "parked-ids")])


def test_concurrent_registration_and_rows_lose_nothing(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        async def feed(worker: int) -> None:
            for i in range(50):
                await store.apply({"v": [event(i % 7, id=f"{worker}-{i}"), event(i % 7)]})

        async def register() -> None:
            await asyncio.sleep(0.02)
            await store.register("v", REGISTRATION)

        await asyncio.gather(*[feed(worker) for worker in range(4)], register())

    with_store(empty_redis, work)
    assert sum(cells(empty_redis).values()) == 400


def test_parking_is_limited(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        full = (await store.apply({"v": [event(i) for i in range(5)]}))["v"].outcome
        assert (full.parked, [r.reason for r in full.rejections]) == (3, ["parking_full"] * 2)
        assert all(r.retryable for r in full.rejections)
        await store.apply({"w": [event(1, video="w")]})
        third = (await store.apply({"x": [event(1, video="x")]}))["x"].outcome
        assert (third.parked, len(third.rejections)) == (0, 1)
        await store.register("w", REGISTRATION)
        assert (await store.apply({"x": [event(1, video="x")]}))["x"].outcome.parked == 1

    with_store(empty_redis, work, park_rows=3, park_videos=2)
    with redis.Redis.from_url(empty_redis) as client:
        assert 86_000 < client.ttl(keys.video_prefix("v") + "parked") <= 86_400


def test_a_type_takes_events_or_counters_but_not_both(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(1)]})
        before = cells(empty_redis), version(empty_redis)
        refused = (await store.apply({"v": [counters(2, view=5, like=3)]}))["v"].outcome
        assert [(r.reason, r.field, r.value) for r in refused.rejections] == [("mode_conflict", "views", "5")]
        assert (cells(empty_redis), version(empty_redis)) == before
        assert (await store.apply({"v": [counters(2, like=3)]}))["v"].outcome.accepted == 1
        other = (await store.apply({"v": [event(3, "like")]}))["v"].outcome.rejections
        assert [(r.reason, r.field, r.value) for r in other] == [("mode_conflict", "type", "like")]

    with_store(empty_redis, work)


def test_counters_keep_the_largest_and_count_corrections(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        for at_s, views, corrected in (
            (100, 50, 0),
            (100.1, 40, 1),
            (3600, 45, 1),
            (3700, 60, 0),
            (50, 7, 0),
            (3600, 45, 0),
        ):
            result = (await store.apply({"v": [counters(at_s, view=views)]}))["v"].outcome
            assert (result.accepted, result.corrected) == (1, corrected), at_s
        snapshot = await store.read("v")
        assert snapshot is not None
        assert snapshot.history.totals() == {"view": 60}
        assert snapshot.newest_us == P0 + 3700 * S

    with_store(empty_redis, work)


def test_versions_change_only_with_the_video_and_never_repeat(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        first = await store.register("v", REGISTRATION)
        assert not (await store.register("v", REGISTRATION)).changed
        assert (await store.register("v", Registration(P0, '{"title":"t"}'))).changed
        applied = (await store.apply({"v": [event(1, id="a")]}))["v"]
        assert applied.version is not None and first.version is not None and applied.version > first.version
        same = (await store.apply({"v": [event(1, id="a")]}))["v"]
        assert (same.version, same.changed) == (applied.version, False)
        assert await store.forget("v") and not await store.forget("v")
        again = await store.register("v", REGISTRATION)
        assert again.version is not None and again.version > applied.version
        assert (await store.apply({"v": [event(1, id="a")]}))["v"].outcome.accepted == 1

    with_store(empty_redis, work)


def test_read_sends_cells_only_when_they_changed(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        assert await store.read("v") is None
        await store.register("v", Registration(P0, '{"title":"t","duration_s":3.5}'))
        await store.apply({"v": [event(1, reach=9), event(2, "like", 2)]})
        snapshot = await store.read("v")
        assert snapshot is not None and snapshot.video.title == "t" and snapshot.video.duration_s == 3.5
        assert snapshot.history.reach == {1: 9}
        assert await store.read("v", snapshot) is snapshot
        await store.apply({"v": [event(1)]})
        newer = await store.read("v", snapshot)
        assert newer is not None and newer.history.totals() == {"view": 2, "like": 2}

    with_store(empty_redis, work)


def test_the_first_row_fixes_the_publication_time(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.register("v", Registration(P0 + S, "{}"))
        await store.apply({"v": [event(5)]})
        with pytest.raises(Conflict):
            await store.register("v", REGISTRATION)

    with_store(empty_redis, work)
    assert cells(empty_redis) == {"4:view": 1}


def test_rows_merged_by_an_old_publication_time_are_sent_again(empty_redis: str) -> None:
    """Another process has changed the publication time in the meantime: the rows are sent again, unmerged."""

    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)

        async def elsewhere(other: Store) -> None:
            await other.register("v", Registration(P0 + 2 * S, "{}"))

        await asyncio.to_thread(with_store, empty_redis, elsewhere)
        assert (await store.apply({"v": [event(5.1), event(5.9), event(1)]}))["v"].outcome.accepted == 2

    with_store(empty_redis, work)
    assert cells(empty_redis) == {"3:view": 2}


def test_counts_are_exact_up_to_the_limit_and_refused_above_it(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(1, count=MAX_COUNT - 2, id="a"), event(2, count=1), event(3, count=1)]})
        full = (await store.apply({"v": [event(1, count=1)]}))["v"].outcome
        assert [r.reason for r in full.rejections] == ["overflow"]
        reach = (await store.apply({"v": [event(1, "like", reach=MAX_COUNT), event(1, "like", reach=1)]}))["v"].outcome
        assert [(r.reason, r.field) for r in reach.rejections] == [("overflow", "reach")]

    with_store(empty_redis, work)
    assert cells(empty_redis) == {"1:view": MAX_COUNT - 2, "2:view": 1, "3:view": 1, "1:like": 1, "1:reach": MAX_COUNT}


@pytest.mark.parametrize(("days_ago", "known"), [(1, True), (2, True), (3, True), (4, False)])
def test_ids_are_remembered_for_dedup_ttl_s(empty_redis: str, days_ago: int, known: bool) -> None:
    """An id set takes ids for two days (the window), and is looked up until another window has passed."""

    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(1, id="a")]})

    async def later(store: Store) -> None:
        await store.apply({"v": [event(2, id="b")]})
        outcome = (await store.apply({"v": [event(1, id="a"), event(2, id="b")]}))["v"].outcome
        assert outcome.duplicate == 1 + known

    with_store(empty_redis, work)
    prefix = keys.video_prefix("v")
    with redis.Redis.from_url(empty_redis) as client:
        (key,) = client.keys(prefix.replace("{", r"\{").replace("}", r"\}") + "ids:*")
        day = int(key.rsplit(b":", 1)[1])
        assert client.expiretime(key) == (day + 4) * 86_400
        # Simulates a later clock: the set is so many days old, and deleted once it has expired.
        meta = msgspec.msgpack.decode(client.get(prefix + "meta"))
        meta[4] -= days_ago
        client.set(prefix + "meta", msgspec.msgpack.encode(meta))
        client.rename(key, f"{prefix}ids:{day - days_ago}")
        client.expireat(f"{prefix}ids:{day - days_ago}", (day - days_ago + 4) * 86_400)
    with_store(empty_redis, later)


def test_changes_are_published(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(1)], "w": [event(1, video="w")]})
        await store.forget("v")

    with_store(empty_redis, work)
    with redis.Redis.from_url(empty_redis) as client:
        published = [json.loads(entry[b"videos"]) for _, entry in client.xrange(keys.CHANGES)]
    assert [[video for video, _ in entry] for entry in published] == [["v"], ["v"], [tombstone("v")]]
    assert published[0][0][1] < published[1][0][1] and published[2][0][1] == 0


@pytest.mark.parametrize("video_id", ["a}b", "}", "{}", "%7D", "a/b c", "\u0000", "é" * 256])
def test_all_keys_of_any_id_share_one_slot(empty_redis: str, video_id: str) -> None:
    prefix = keys.video_prefix(video_id)
    tag = prefix[prefix.index("{") + 1 : prefix.index("}")]
    assert tag and prefix == f"m3tr:{{{tag}}}:"

    async def work(store: Store) -> None:
        await store.register(video_id, REGISTRATION)
        await store.apply({video_id: [event(1, video=video_id, id="x")]})
        snapshot = await store.read(video_id)
        assert snapshot is not None and snapshot.video.video_id == video_id
        assert await store.forget(video_id)

    with_store(empty_redis, work)
    with redis.Redis.from_url(empty_redis) as client:
        assert client.keys("m3tr:[{]*") == []


def test_escaped_ids_do_not_collide() -> None:
    assert len({keys.video_prefix(v) for v in ("a}", "a%7D", "a%257D", "a{", "a%")}) == 5


def test_metadata_is_stored_unchanged(empty_redis: str) -> None:
    title = 'quotes " \\ \n 字 🎬'

    async def work(store: Store) -> None:
        await store.register("v", Registration(P0, json.dumps({"title": title})))
        snapshot = await store.read("v")
        assert snapshot is not None and snapshot.video.title == title

    with_store(empty_redis, work)
