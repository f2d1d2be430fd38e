"""A record that cannot be read affects nothing else, whatever is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import redis

from index_builder.datasets.export import export_store
from model.forecaster import Forecaster
from service.quality.label_store import encode_adaptive, parse_adaptive
from service.store import keys
from service.times import iso
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

BAD = keys.video_prefix("bad")
Harm = Callable[[Any], object]


def _meta(client: Any, change: Callable[[list[Any]], Any]) -> None:
    client.set(BAD + "meta", msgspec.msgpack.encode(change(msgspec.msgpack.decode(client.get(BAD + "meta")))))


def _kind(client: Any, key: str) -> None:
    client.delete(key)
    client.lpush(key, "x")


HARMS: dict[str, Harm] = {
    "about missing": lambda c: c.delete(BAD + "about"),
    "about garbage": lambda c: c.set(BAD + "about", b"\xff\x00{"),
    "about another type of JSON": lambda c: c.set(BAD + "about", b"[1]"),
    "about with a wrong value": lambda c: c.set(BAD + "about", b'{"title": 5}'),
    "about of a wrong type": lambda c: _kind(c, BAD + "about"),
    "meta garbage": lambda c: c.set(BAD + "meta", b"\xc1\xff"),
    "meta a number": lambda c: c.set(BAD + "meta", b"5"),
    "meta cut short": lambda c: c.set(BAD + "meta", c.get(BAD + "meta")[:-3]),
    "meta without its end": lambda c: _meta(c, lambda meta: meta[:-1]),
    "meta with text for a number": lambda c: _meta(c, lambda meta: [*meta[:8], "x", *meta[9:]]),
    "meta of a newer format": lambda c: _meta(c, lambda meta: ["9", *meta]),
    "meta of a wrong type": lambda c: _kind(c, BAD + "meta"),
    "bins missing": lambda c: c.delete(BAD + "bins:view:0"),
    "bins garbage": lambda c: c.hset(BAD + "bins:view:0", "x", "y"),
    "bins out of range": lambda c: c.hset(BAD + "bins:view:0", "99999", "1"),
    "bins negative": lambda c: c.hset(BAD + "bins:view:0", "1", "-5"),
    "bins of a wrong type": lambda c: _kind(c, BAD + "bins:view:0"),
}


def _fill(service: Live) -> None:
    for video_id in ("bad", "good"):
        service.register(video_id, T0, title=video_id)
        rows = [{"video_id": video_id, "time": T0 + age, "type": "view", "count": 2} for age in (1, 30, 300, 3000)]
        service.post("/events", rows)


def _metric(service: Live, name: str) -> float:
    text = service.http.get("/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_record_affects_no_other_video(empty_redis: str, harm: Harm, tmp_path: Path) -> None:
    # The reading process has no copy of the record in its cache.
    with live(empty_redis) as service:
        _fill(service)
        harm(service.redis)
    with live(empty_redis, ranking_forecasts=100) as service:
        for _ in range(2):
            response = service.http.get("/videos/bad")
            assert (response.status_code, response.json()["type"]) == (500, "urn:m3tr:problem:damaged-record"), (
                response.text
            )
            assert response.json()["value"] == "bad" and not response.json()["retryable"]
            assert service.http.get("/videos/good").json()["counts"] == {"view": 8}
        both = service.http.post("/predict", json=[{"video": {"video_id": v}} for v in ("bad", "good")]).json()
        assert [one["status"] for one in both] == [500, 200]
        later = {"time": T0 + 4000, "type": "view"}
        answer = service.http.post("/events", json=[{"video_id": v, **later} for v in ("bad", "good")])
        assert answer.status_code == 200
        assert service.http.get("/videos/good").json()["counts"] == {"view": 9}
        assert all((r["video_id"] if "video_id" in r else r["value"]) == "bad" for r in answer.json()["rejections"])
        assert _metric(service, "m3tr_quarantined_records_total") == 1
        wait_until(lambda: [v["video_id"] for v in service.http.get("/videos?sort=views").json()["videos"]] == ["good"])
        made = export_store(tmp_path / "out", redis_url=empty_redis)
        assert list(made.damaged) == ["bad"]
        assert pq.read_table(tmp_path / "out" / "videos.parquet")["video_id"].to_pylist() == ["good"]
        # It can be deleted completely, and registered again.
        assert service.http.delete("/videos/bad").status_code == 204
        assert [key for key in service.redis.scan_iter() if b"{bad}" in key] == []
        service.register("bad")
        assert service.http.get("/videos/bad").json()["counts"] == {}


def test_rows_for_a_damaged_record_are_rejected_with_a_reason(service: Live) -> None:
    _fill(service)
    service.redis.set(BAD + "meta", b"\xc1")
    rows = [{"video_id": v, "time": T0 + 9, "type": "view"} for v in ("bad", "good", "bad")]
    response = service.post("/events", rows)
    assert (response["accepted"], response["rejected"]) == (1, 2)
    assert [(r["index"], r["reason"], r["value"]) for r in response["rejections"]] == [
        (0, "damaged", "bad"),
        (2, "damaged", "bad"),
    ]
    alone = service.http.post("/events", json=rows[:1])
    assert (alone.status_code, alone.json()["value"]) == (500, "bad")
    put = service.http.put("/videos/bad", json={"published_at": T0})
    assert (put.status_code, put.json()["type"]) == (500, "urn:m3tr:problem:damaged-record")


def test_registering_again_restores_lost_metadata(service: Live) -> None:
    _fill(service)
    service.redis.delete(BAD + "about")
    service.register("bad", T0, title="again")
    assert service.http.get("/videos/bad").json()["counts"] == {"view": 8}


def test_a_record_without_meta_starts_empty(service: Live) -> None:
    _fill(service)
    service.redis.delete(BAD + "meta")
    assert service.http.get("/videos/bad").status_code == 404
    service.register("bad", T0)
    service.post("/events", [{"video_id": "bad", "time": T0 + 1, "type": "view"}])
    assert service.http.get("/videos/bad").json()["counts"] == {"view": 1}
    service.redis.delete(BAD + "meta")
    assert service.http.delete("/videos/bad").status_code == 204
    assert [key for key in service.redis.scan_iter() if b"{bad}" in key] == []


def test_broken_parked_rows_are_counted_and_the_others_applied(service: Live) -> None:
    service.post("/events", [{"video_id": "bad", "time": T0 + 5, "type": "view", "count": 3}])
    for broken in (b"\xc1", b"\x93\x01", msgspec.msgpack.encode(["x", False, "view", 1, 0])):
        service.redis.rpush(BAD + "parked", broken)
    response = service.register("bad")
    assert (response["parked_applied"], response["parked_rejected"]) == (1, 3)
    assert service.http.get("/videos/bad").json()["counts"] == {"view": 3}
    assert not service.redis.exists(BAD + "parked")


def test_rankings_skip_entries_that_cannot_be_read(service: Live) -> None:
    row = b'{"title":null,"counts":{},"value_now":1,"expected":2,"horizon_us":1,"as_of_us":1}'
    for score, (name, text) in enumerate({"a": row, "b": b"garbage", b"\xff": row, "c": b'{"title":1}'}.items()):
        service.redis.zadd(keys.rank("rising"), {name: score})
        service.redis.hset(keys.RANK_ROWS, name, text)
    answer = service.http.get("/videos")
    assert answer.status_code == 200 and [v["video_id"] for v in answer.json()["videos"]] == ["a"]


def test_scoring_continues_beside_damaged_labels(redis_url: str, empty_redis: str) -> None:
    clean = encode_adaptive(parse_adaptive(""))
    for text in (
        "{",
        "[]",
        "null",
        '{"overall":[1]}',
        clean.replace("0.0", "NaN", 1),
        clean.replace("[[", "[[[1],[", 1),
    ):
        assert encode_adaptive(parse_adaptive(text)) == clean
    now = time.time()
    with live(empty_redis, labels=1000, label_grace_s=0, label_horizons_s="900,40000") as service:
        # The first column is unusable; the adaptive state and the sums of the others cannot be read.
        service.redis.set(keys.label_key("due:0"), "of a wrong type")
        service.redis.set(keys.label_key("adaptive:fa4e|total"), "garbage")
        for video_id in ("bad", "good"):
            service.register(video_id, iso(round((now - 3 * 86400) * 1e6)))
            service.post("/events", [{"video_id": video_id, "time": now - 60, "type": "view", "count": 5}])
        wait_until(lambda: _labels(service) == 2)
        (made,) = service.redis.keys(keys.label_key("made:*"))
        day = keys.label_key(f"day:{int(time.time() // 86400)}:fa4e")
        column = int(made.decode().rsplit(":", 1)[1])
        service.redis.hset(day, mapping={f"{row}:{column}:gone": "garbage" for row in range(10)})
        service.redis.set(BAD + "meta", b"\xc1")
        service.redis.hset(made, "unreadable", b"\xff")
        due = made.decode().replace("made", "due")
        service.redis.zadd(due, {name: 0 for name in service.redis.hkeys(made)})
        wait_until(lambda: _outcomes(service, "gone") + _outcomes(service, "unlabelled") >= 1)
        assert service.http.get("/quality").status_code == 200
        wait_until(lambda: not service.redis.hexists(made, "unreadable"))


def _labels(service: Live) -> int:
    return sum(service.redis.hlen(key) for key in service.redis.keys(keys.label_key("made:*")))


def _outcomes(service: Live, outcome: str) -> float:
    return service.context.metrics.labels.labels(outcome)._value.get()


def test_the_bank_grows_beside_a_damaged_record(mini: Mini, empty_redis: str, tmp_path: Path) -> None:
    bundle = copy_tree(mini.bundle, tmp_path / "bundle")
    now = time.time()
    forecaster = Forecaster.load(bundle, device="cpu")
    try:
        with live(
            empty_redis,
            forecaster=forecaster,
            pool=forecaster.new_pool(32),
            bank=forecaster.bank,
            bank_after_s=60,
            bank_entries=1000,
        ) as service:
            kind = forecaster.manifest.types[0]

            def grown(name: str) -> None:
                service.register(name, now - 3600)
                service.post("/events", [{"video_id": name, "time": now - 30, "type": kind}])

            grown("bad")
            wait_until(lambda: service.context.metrics.bank_entries.labels("entered")._value.get() >= 1)
            service.redis.delete(BAD + "about")
            for key in service.redis.keys("m3tr:{maturing*"):
                service.redis.zadd(key, {"bad": 0, b"\xff": 0})
            for name in ("a", "b"):
                grown(name)
            wait_until(lambda: service.context.metrics.bank_entries.labels("entered")._value.get() >= 3)
    finally:
        forecaster.close()


def test_a_foreign_key_is_not_a_video(empty_redis: str, tmp_path: Path) -> None:
    with live(empty_redis) as service:
        _fill(service)
    with redis.Redis.from_url(empty_redis) as client:
        client.set(b"m3tr:{\xff}:meta", b"x")
    made = export_store(tmp_path / "out", redis_url=empty_redis)
    assert made.rows["videos.parquet"] == 2 and not made.damaged


def test_concurrent_reads_fail_for_the_damaged_video_only(service: Live) -> None:
    _fill(service)
    service.redis.set(BAD + "about", b"x")

    names = ["bad", "good"] * 20
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda v: service.http.get(f"/videos/{v}").status_code, names))
    assert statuses == [500, 200] * 20
