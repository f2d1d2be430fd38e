"""Ranked lists: kept in the background, read in pages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.rankings.updater import PRIOR
from service.store import keys
from tests.service.fakes import FakeForecaster
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

NOW = int(time.time()) - 3600


@pytest.fixture
def ranked(empty_redis: str) -> Iterator[Live]:
    with live(empty_redis, ranking_forecasts=1000) as service:
        yield service


def fill(service: Live, views: dict[str, int], published_at: int = NOW) -> None:
    for video_id, count in views.items():
        service.register(video_id, published_at, title=f"title of {video_id}")
        service.post("/events", [{"video_id": video_id, "time": published_at + 5, "type": "view", "count": count}])


def page(service: Live, **query: Any) -> dict[str, Any]:
    answer = service.http.get("/videos", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores(service: Live, sort: str) -> dict[str, float]:
    return {row["video_id"]: row["score"] for row in page(service, sort=sort, limit=200)["videos"]}


def wait_listed(service: Live, views: dict[str, int]) -> None:
    wait_until(lambda: scores(service, "views") == views)


def walk(service: Live, sort: str, limit: int, between: Callable[[list[str]], None] = lambda seen: None) -> list[str]:
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        got = page(service, sort=sort, limit=limit, **cursor)
        seen += [row["video_id"] for row in got["videos"]]
        if got["next_cursor"] is None:
            return seen
        cursor = {"cursor": got["next_cursor"]}
        between(seen)


def test_every_order_and_every_field(ranked: Live) -> None:
    views = {f"v{i}": (i * 37) % 101 + 1 for i in range(12)}
    fill(ranked, views)
    wait_listed(ranked, views)
    for sort in keys.SORTS:
        rows = page(ranked, sort=sort)["videos"]
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        assert {row["video_id"] for row in rows} == set(views)
        for row in rows:
            assert row["counts"] == {"view": views[row["video_id"]]} and row["title"] == f"title of {row['video_id']}"
            made = ranked.http.get(f"/videos/{row['video_id']}/forecast", params={"horizons_s": 86400}).json()
            expected = made["forecasts"][0]["q0.5"]
            assert (row["value_now"], row["expected"], row["horizon_s"]) == (made["value_now"], expected, 86400)
            growth = math.log2((expected + PRIOR) / (made["value_now"] + PRIOR))
            assert row["score"] == pytest.approx(
                {"rising": growth, "expected": expected, "views": views[row["video_id"]]}[sort]
            )
            assert row["as_of"].endswith("Z")
    assert page(ranked)["sort"] == "rising"


def test_lists_follow_changes_and_deletions(ranked: Live) -> None:
    fill(ranked, {"a": 1, "b": 2})
    wait_listed(ranked, {"a": 1, "b": 2})
    ranked.post("/events", [{"video_id": "a", "time": NOW + 9, "type": "view", "count": 9}])
    wait_listed(ranked, {"a": 10, "b": 2})
    assert walk(ranked, "views", 1) == ["a", "b"]
    ranked.http.delete("/videos/a")
    wait_until(lambda: [scores(ranked, sort).keys() for sort in keys.SORTS] == [{"b"}] * 3)
    assert ranked.redis.hkeys(keys.RANK_ROWS) == [b"b"]


def test_silent_videos_leave_the_rising_list_and_cost_nothing(ranked: Live) -> None:
    fill(ranked, {"old": 5}, published_at=T0)
    fill(ranked, {"new": 3})
    wait_listed(ranked, {"old": 5, "new": 3})
    assert scores(ranked, "rising").keys() == {"new"}
    assert scores(ranked, "expected").keys() == {"old", "new"}
    due = dict(ranked.redis.zrange(keys.RANK_DUE, 0, -1, withscores=True))
    assert due.keys() == {b"new"} and due[b"new"] > time.time() + 30


def test_paging_returns_every_video_once_with_equal_scores(ranked: Live) -> None:
    views = {f"v{i:02}": 7 if i % 5 else 9 for i in range(60)}
    fill(ranked, views)
    wait_listed(ranked, views)
    order = walk(ranked, "views", 200)
    assert order == sorted(views, key=lambda video_id: (views[video_id], video_id), reverse=True)
    for limit in (1, 7, 12, 59, 60, 61):
        assert walk(ranked, "views", limit) == order


@pytest.mark.parametrize("goes", [True, False], ids=["deleted", "risen"])
def test_paging_continues_after_its_last_item_moved(ranked: Live, goes: bool) -> None:
    views = dict.fromkeys((f"v{i:02}" for i in range(30)), 7)
    fill(ranked, views)
    wait_listed(ranked, views)

    def move(seen: list[str]) -> None:
        if goes:
            ranked.redis.zrem(keys.rank("views"), seen[-1])
        else:
            ranked.redis.zadd(keys.rank("views"), {seen[-1]: 1000})

    assert walk(ranked, "views", 4, move) == sorted(views, reverse=True)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"sort": "beauty"}, "sort"),
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "²"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "WyJ2aWV3cyIsMS4wLCJhIl0="}, "cursor"),
        ({"cursor": "A" * 20_000}, "cursor"),
        ({"sort": "views", "cursor": "WyJ2aWV3cyIsIngiLCJhIl0="}, "cursor"),
    ],
)
def test_invalid_queries(service: Live, query: dict[str, str], field: str) -> None:
    answer = service.http.get("/videos", params=query)
    assert answer.status_code == 422 and answer.json()["field"] == field


def test_an_empty_store_has_an_empty_page(service: Live) -> None:
    assert page(service, sort="views") == {"sort": "views", "videos": [], "next_cursor": None}


def test_lists_are_bounded(empty_redis: str) -> None:
    with live(empty_redis, ranking_forecasts=1000, ranking_videos=5) as service:
        views = {f"v{i:02}": i + 1 for i in range(30)}
        fill(service, views)
        wait_until(lambda: scores(service, "views") == {f"v{i:02}": i + 1 for i in range(25, 30)})
        assert all(len(scores(service, sort)) <= 5 for sort in keys.SORTS)
        listed = {video_id for sort in keys.SORTS for video_id in scores(service, sort)}
        wait_until(lambda: {name.decode() for name in service.redis.hkeys(keys.RANK_ROWS)} == listed)
        assert service.redis.zcard(keys.RANK_DUE) <= 50


def test_queue_of_due_videos_is_bounded(empty_redis: str) -> None:
    with live(empty_redis, ranking_forecasts=1000, ranking_videos=1) as service:
        service.redis.zadd(keys.RANK_DUE, {f"far{i}": time.time() + 1000 + i for i in range(50)})
        service.redis.zadd(keys.rank("rising"), {"far49": 99})
        fill(service, {"v": 3})
        wait_until(lambda: service.redis.zcard(keys.RANK_DUE) == 10)
        wait_until(lambda: service.redis.zscore(keys.rank("rising"), "far49") is None)
        assert service.redis.zscore(keys.RANK_DUE, "far0") and not service.redis.zscore(keys.RANK_DUE, "far49")


def test_work_is_bounded_and_shared(empty_redis: str) -> None:
    models = FakeForecaster(), FakeForecaster()
    settings: dict[str, Any] = {"ranking_forecasts": 20}
    with (
        live(empty_redis, forecaster=models[0], **settings) as one,
        live(empty_redis, forecaster=models[1], **settings),
    ):
        began = time.monotonic()
        views = {f"v{i:02}": i + 1 for i in range(60)}
        fill(one, views)
        wait_listed(one, views)
        assert time.monotonic() - began > 1
    done = [sum(model.batches) for model in models]
    # A video that changed twice (registered, then rows) may be ranked twice.
    assert 60 <= sum(done) <= 120 and min(done) >= 10


def test_bundle_with_a_shorter_horizon(empty_redis: str) -> None:
    model = FakeForecaster()
    object.__setattr__(model.manifest, "max_horizon_us", 3_600_000_000)
    with live(empty_redis, forecaster=model, ranking_forecasts=1000) as service:
        fill(service, {"v": 3})
        wait_listed(service, {"v": 3})
        assert page(service)["videos"][0]["horizon_s"] == 3600


def test_ranking_continues_after_a_failure(empty_redis: str) -> None:
    model = FakeForecaster()
    plain = model.forecast
    failing = [True]

    def forecast(*args: Any, **options: Any) -> Any:
        if failing:
            failing.clear()
            raise RuntimeError("once")
        return plain(*args, **options)

    model.forecast = forecast  # type: ignore[method-assign]
    with live(empty_redis, forecaster=model, ranking_forecasts=1000) as service:
        fill(service, {"v": 3})
        wait_until(lambda: not failing)
        service.post("/events", [{"video_id": "v", "time": NOW + 9, "type": "view"}])
        wait_listed(service, {"v": 4})


def test_the_age_of_the_lists_is_in_the_metrics(ranked: Live) -> None:
    def told(name: str) -> float:
        text = ranked.http.get("/metrics").text
        return float(next((line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")), math.nan))

    fill(ranked, {"v": 3})
    wait_listed(ranked, {"v": 3})
    wait_until(lambda: 0 <= told("m3tr_list_age_seconds") < 5)
    assert told("m3tr_list_overdue_seconds") < 5
    # Another replica kept the lists an hour ago, and none does now.
    ranked.redis.set(keys.RANK_AT, time.time() - 3600)
    wait_until(lambda: told("m3tr_list_age_seconds") >= 3600)


def test_each_metric_has_its_lists(empty_redis: str) -> None:
    with live(empty_redis, ranking_forecasts=1000, forecaster=FakeForecaster(("view", "a:b", "like"))) as service:
        fill(service, {"x": 900, "y": 10})
        for video_id, likes in {"x": 2, "y": 700}.items():
            service.post("/events", [{"video_id": video_id, "time": NOW + 6, "type": "like", "count": likes}])

        def listed(sort: str, **query: str) -> list[tuple[str, float]]:
            found = page(service, sort=sort, limit=200, **query)
            assert found.get("metric") == (query.get("metric") if query.get("metric") != "view" else None)
            return [(row["video_id"], row["value_now"]) for row in found["videos"]]

        wait_until(lambda: listed("views", metric="like") == [("y", 700), ("x", 2)])
        assert listed("views") == listed("views", metric="view") == [("x", 900), ("y", 10)]
        row = next(row for row in page(service, sort="expected", metric="like")["videos"] if row["video_id"] == "y")
        made = service.http.get("/videos/y/forecast", params={"horizons_s": 86400, "metrics": "like"}).json()
        assert row["expected"] == made["forecasts"][0]["q0.5"]
        assert {video_id for video_id, _ in listed("rising", metric="a:b")} == {"x", "y"}
        cursor = page(service, sort="views", metric="like", limit=1)["next_cursor"]
        assert listed("views", metric="like", cursor=cursor) == [("x", 2)]
        for wrong, field in (({"metric": "laugh"}, "metric"), ({"cursor": cursor}, "cursor")):
            answer = service.http.get("/videos", params={"sort": "views", **wrong})
            assert (answer.status_code, answer.json()["field"]) == (422, field)
        service.http.delete("/videos/y")
        wait_until(lambda: [listed(sort, metric="like") for sort in keys.SORTS] == [[("x", 2)]] * 3)
        left = [key for key in service.redis.scan_iter("m3tr:{rank}:*") if service.redis.type(key) == b"zset"]
        assert len(left) >= 9 and all(service.redis.zscore(key, "y") is None for key in left)
