"""The service with valid input."""

from __future__ import annotations

import gzip
import json
import threading
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from service.times import iso
from tests.service.fakes import FakeBank, FakeForecaster
from tests.service.running import T0, Live, live, wait_until

EVENTS: list[dict[str, Any]] = [
    {"video_id": "v", "time": T0 + 5, "type": "view", "count": 3, "reach": 10},
    {"video_id": "v", "time": T0 + 5.5, "type": "view"},
    {"video_id": "v", "time": iso((T0 + 400) * 1_000_000), "type": "like", "id": "l1"},
    {"video_id": "v", "time": T0 + 4000, "type": "view", "id": "w1"},
]


def forecast(service: Live, video_id: str = "v", **query: Any) -> dict[str, Any]:
    answer = service.http.get(f"/videos/{quote(video_id, safe='')}/forecast", params={"at": T0 + 5000, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_register_send_rows_forecast(service: Live) -> None:
    told = service.register("v", title="A title", tags=["a", "b"], audio_language="te")
    assert told["unused_fields"] == ["audio_language"]
    assert service.post("/events", EVENTS) == {
        "accepted": 4,
        "duplicate": 0,
        "parked": 0,
        "rejected": 0,
        "corrected": 0,
        "rejections": [],
    }
    assert service.post("/events", EVENTS[2:])["duplicate"] == 2
    video = service.http.get("/videos/v").json()
    assert video["tags"] == "a,b" and video["title"] == "A title"
    assert video["counts"] == {"view": 5, "like": 1}
    assert video["newest_row_at"] == iso((T0 + 4000) * 1_000_000)
    made = forecast(service, horizons_s="7200,3600,3600")
    assert [f["horizon_s"] for f in made["forecasts"]] == [3600, 7200]
    assert made["forecasts"][0]["time"] == iso((T0 + 8600) * 1_000_000)
    assert made["at"] == iso((T0 + 5000) * 1_000_000)
    assert made["counts"] == {"view": 5, "like": 1} and made["value_now"] == 6
    assert made["neighbours"][0]["growth"] == {"3600": 2.0, "7200": 2.0}
    assert (made["model_version"], made["stale"], made["degraded"]) == ("fa4e", False, [])
    assert [f["horizon_s"] for f in forecast(service)["forecasts"]] == [3600, 21600, 86400, 259200, 604800, 2592000]
    assert service.http.delete("/videos/v").status_code == 204
    assert service.http.get("/videos/v").status_code == 404
    # Only the tombstone, a digest of the id, stays.
    assert {key for key in service.dump() if b"{" in key and b"{forgotten}" not in key} == set()


def test_a_forecast_has_a_mean_seven_quantiles_and_asked_thresholds(service: Live) -> None:
    service.register("v")
    service.post("/events", EVENTS)
    made = forecast(service, horizons_s="3600,7200", thresholds="1000000,2")
    for one in made["forecasts"]:
        names = [name for name in one if name.startswith("q")]
        assert names == ["q0.05", "q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.95"]
        assert [one[name] for name in names] == sorted(one[name] for name in names) and one["mean"] > 0
    passed, far = made["thresholds"]
    assert passed == {
        "threshold": 2,
        "probability": {"3600": 1.0, "7200": 1.0},
        "passed_by": {"0.5": made["at"], "0.9": None},
    }
    assert far["threshold"] == 1_000_000 and far["passed_by"] == {"0.5": None, "0.9": None}
    assert 0 < far["probability"]["3600"] <= far["probability"]["7200"] < 1


def test_predict_equals_register_send_rows_forecast(service: Live) -> None:
    service.register("v", title="t")
    service.post("/events", EVENTS)
    expected = forecast(service, horizons_s=3600)
    service.redis.flushall()
    rows = [{name: value for name, value in row.items() if name != "video_id"} for row in EVENTS]
    body = {
        "video": {"video_id": "v", "published_at": T0, "title": "t"},
        "events": rows,
        "at": T0 + 5000,
        "horizons_s": [3600],
    }
    made = service.http.post("/predict", json=body).json()
    assert made.pop("rows") == {
        "accepted": 4,
        "duplicate": 0,
        "corrected": 0,
        "parked_applied": 0,
        "parked_rejected": 0,
    }
    assert made == expected
    # A registered video needs no metadata; rows with known ids change nothing.
    again = service.http.post(
        "/predict", json={"video": {"video_id": "v"}, "events": rows[2:], "at": T0 + 5000, "horizons_s": [3600]}
    )
    assert again.json().pop("rows")["duplicate"] == 2
    assert service.http.get("/videos/v").json()["title"] == "t"


def test_times_in_all_forms(service: Live) -> None:
    service.register("v", datetime.fromtimestamp(T0, UTC).isoformat())
    zone = "2025-10-09T10:53:25+02:00"
    times = [T0 + 5, float(T0 + 5), "2025-10-09T08:53:25Z", zone, "2025-10-09T08:53:25.000000999Z"]
    service.post("/events", [{"video_id": "v", "time": t, "type": "view"} for t in times])
    assert service.http.get("/videos/v").json()["bins"] == 1
    for at in (zone, zone.replace("+", "%2B")):
        assert service.http.get(f"/videos/v/forecast?at={at}").json()["at"] == "2025-10-09T08:53:25Z"


def test_bodies_in_all_forms(service: Live) -> None:
    service.register("v")
    ndjson = "\n".join(json.dumps(row) for row in EVENTS[:2])
    for content, headers in (
        (json.dumps(EVENTS[:2]), {"content-type": "application/json; charset=utf-8"}),
        (json.dumps({"rows": EVENTS[:2]}), {"content-type": "application/json"}),
        (ndjson, {"content-type": "application/x-ndjson"}),
        (gzip.compress(ndjson.encode()), {"content-type": "application/x-ndjson", "content-encoding": "gzip"}),
    ):
        assert service.http.post("/events", content=content, headers=headers).json()["accepted"] == 2
    assert service.http.get("/videos/v").json()["counts"] == {"view": 16}
    assert service.post("/events", [])["accepted"] == 0


@pytest.mark.parametrize("video_id", ["a/forecast", "a{b}", "ü 字", "a?b#c%2F", "..", "a\nb"])
def test_any_id(service: Live, video_id: str) -> None:
    path = f"/videos/{quote(video_id, safe='').replace('.', '%2E')}"
    assert service.http.put(path, json={"published_at": T0}).json()["video_id"] == video_id
    service.post("/events", [{**EVENTS[0], "video_id": video_id}])
    assert service.http.get(path).json()["counts"] == {"view": 3}
    assert service.http.get(f"{path}/forecast").json()["video_id"] == video_id


def test_rows_before_their_registration(service: Live) -> None:
    service.register("v")
    service.post("/events", EVENTS)
    expected = forecast(service)
    service.redis.flushall()
    assert service.post("/events", EVENTS)["parked"] == 4
    assert service.post("/events", EVENTS[2:])["duplicate"] == 2
    told = service.register("v")
    assert (told["parked_applied"], told["parked_rejected"]) == (4, 0)
    assert forecast(service) == expected


def test_order_batching_and_lateness_do_not_matter(service: Live) -> None:
    service.register("v")
    service.post("/events", EVENTS)
    expected = forecast(service)
    service.redis.flushall()
    service.register("v")
    for row in reversed(EVENTS):
        service.post("/events", [row])
        forecast(service)
    assert forecast(service) == expected


def test_at_before_the_newest_row_uses_ended_bins_only(service: Live) -> None:
    service.register("v")
    service.post("/events", EVENTS)
    before = forecast(service, at=T0 + 400.5)
    assert before["as_of_bins"] and before["counts"] == {"view": 4, "like": 0}
    first = forecast(service, at=T0 + 5.9)
    assert first["as_of_bins"] and first["value_now"] == 0
    full = forecast(service, at=T0 + 4000)
    assert not full["as_of_bins"] and full["value_now"] == 6


def test_counters(service: Live) -> None:
    service.register("v")
    rows = [
        {"video_id": "v", "time": T0 + 100, "views": 50, "likes": 2},
        {"video_id": "v", "time": T0 + 9000, "views": 45, "likes": None},
    ]
    assert service.post("/counters", rows)["corrected"] == 1
    video = service.http.get("/videos/v").json()
    assert video["counts"] == {"view": 50, "like": 2}
    assert video["fed_by"] == {"view": "counters", "like": "counters"}
    assert service.post("/counters", [{**rows[0], "time": T0 + 8000, "views": 49.0}])["accepted"] == 1


def test_many_videos_in_one_batch(service: Live) -> None:
    for i in range(50):
        service.register(f"v{i}")
    service.post("/events", [{"video_id": f"v{i % 50}", "time": T0 + i, "type": "view"} for i in range(5000)])
    assert {service.http.get(f"/videos/v{i}").json()["counts"]["view"] for i in range(50)} == {100}


def test_forecasts_are_batched(redis_url: str) -> None:
    model = FakeForecaster()
    plain = model.forecast

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return plain(*args, **options)

    model.forecast = slow  # type: ignore[method-assign]
    with live(redis_url, forecaster=model) as service:
        service.redis.flushall()
        service.register("v")
        threads = [
            threading.Thread(target=service.http.get, args=(f"/videos/v/forecast?horizons_s={3600 + i}",))
            for i in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(model.batches) == 20 and max(model.batches) > 5


def test_forecast_past_its_deadline_is_503(redis_url: str) -> None:
    model = FakeForecaster()
    model.forecast = lambda *args, **options: time.sleep(1) or []  # type: ignore[func-returns-value, method-assign]
    with live(redis_url, forecaster=model, request_deadline_ms=100, bank_deadline_ms=50) as service:
        service.redis.flushall()
        service.register("v")
        answer = service.http.get("/videos/v/forecast")
        assert answer.status_code == 503 and answer.json()["retryable"] and answer.headers["retry-after"]


def test_internal_error_is_500_without_internals(redis_url: str) -> None:
    model = FakeForecaster()

    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("secret")

    model.forecast = fail  # type: ignore[method-assign]
    with live(redis_url, forecaster=model) as service:
        service.redis.flushall()
        service.register("v")
        answer = service.http.get("/videos/v/forecast")
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert service.http.get("/videos/v").status_code == 200


def test_forecast_without_the_bank(redis_url: str) -> None:
    model, bank = FakeForecaster(), FakeBank()
    with live(redis_url, forecaster=model, bank=bank) as service:
        service.redis.flushall()
        service.register("v")
        assert service.http.get("/health/ready").json()["bank"] == "ok"
        model.bank_down = bank.down = True
        made = service.http.get("/videos/v/forecast").json()
        assert made["degraded"] == ["bank"] and made["neighbours"] == []
        wait_until(lambda: service.http.get("/health/ready").json()["bank"] == "down")
        assert service.http.get("/health/ready").status_code == 200
        assert 'm3tr_forecasts_degraded_total{part="bank"} 1.0' in service.http.get("/metrics").text


def test_openapi_names_every_route(service: Live) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/predict",
        "/events",
        "/counters",
        "/videos",
        "/videos/{video_id}",
        "/videos/{video_id}/forecast",
        "/videos/{video_id}/forecast/stream",
        "/videos/{video_id}/corrections",
        "/models",
        "/models/{version}/activate",
        "/models/{version}/shadow",
        "/models/shadow",
        "/quality",
        "/metrics",
        "/health/live",
        "/health/ready",
    }
    assert "published_at" in json.dumps(paths["/videos/{video_id}"]["put"])
