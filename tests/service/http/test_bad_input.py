"""Invalid input is reported with field, value and what is allowed, and stores nothing."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from typing import Any

import httpx
import pytest

from tests.service.running import T0, Live, live

NOW = time.time()
OK_EVENT = {"video_id": "v", "time": T0 + 5, "type": "view"}
OK_COUNTERS = {"video_id": "v", "time": T0 + 5, "likes": 3}
OK_VIDEO = {"video_id": "new", "published_at": T0}
MAX_H = 720 * 3600


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail", "retryable"} <= body.keys()
    return body


BAD_EVENTS = [
    ("unknown type", {"type": "clap"}, "type", "clap"),
    ("no type", {"type": None}, "type", "missing"),
    ("negative count", {"count": -1}, "count", "-1"),
    ("zero count", {"count": 0}, "count", "0"),
    ("fractional count", {"count": 1.5}, "count", "1.5"),
    ("boolean count", {"count": True}, "count", "True"),
    ("text count", {"count": "3"}, "count", "3"),
    ("huge count", {"count": 2**53}, "count", str(2**53)),
    ("beyond 64 bits", {"count": 10**30}, "count", None),
    ("negative reach", {"reach": -5}, "reach", "-5"),
    ("before publication", {"time": T0 - 1}, "time", None),
    ("beyond the skew", {"time": NOW + 3600}, "time", None),
    ("no zone", {"time": "2026-01-01T00:00:00"}, "time", "2026-01-01T00:00:00"),
    ("no time", {"time": None}, "time", "missing"),
    ("not a time", {"time": "yesterday"}, "time", "yesterday"),
    ("infinite time", {"time": 1e300}, "time", "1e+300"),
    ("before 1970", {"time": -5}, "time", "-5"),
    ("long id", {"video_id": "x" * 10_000}, "video_id", "x" * 99 + "…"),
    ("no id", {"video_id": ""}, "video_id", ""),
    ("id of a number", {"video_id": 7}, "video_id", "7"),
    ("long event id", {"id": "x" * 257}, "id", None),
    ("unknown field", {"cuont": 2}, "cuont", "2"),
]


@pytest.mark.parametrize(("change", "field", "value"), [b[1:] for b in BAD_EVENTS], ids=[b[0] for b in BAD_EVENTS])
def test_invalid_events(service: Live, change: dict[str, Any], field: str, value: str | None) -> None:
    service.register("v")
    before = service.dump()
    body = problem(service.http.post("/events", json=[{**OK_EVENT, **change}]), 422)
    assert body["field"] == field and body["allowed"]
    assert value is None or body["value"] == value
    assert len(body["value"]) <= 100
    assert body["rejections"][0]["index"] == 0
    assert service.dump() == before
    # Among valid rows it is reported, and those are stored.
    mixed = service.post("/events", [OK_EVENT, {**OK_EVENT, **change}, OK_EVENT])
    assert (mixed["accepted"], mixed["rejected"], mixed["rejections"][0]["index"]) == (2, 1, 1)
    assert service.http.get("/videos/v").json()["counts"] == {"view": 2}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"likes": -1}, "likes"),
        ({"likes": 2.5}, "likes"),
        ({"likes": None}, "counters"),
        ({"likes": None, "claps": 3}, "claps"),
        ({"count": 3}, "count"),
        ({"time": T0 - 1}, "time"),
    ],
)
def test_invalid_counters(service: Live, change: dict[str, Any], field: str) -> None:
    service.register("v")
    before = service.dump()
    body = problem(service.http.post("/counters", json=[{**OK_COUNTERS, **change}]), 422)
    assert body["field"] == field and body["allowed"]
    assert service.dump() == before


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_not_a_number(service: Live, literal: str) -> None:
    service.register("v")
    before = service.dump()
    for path, row in (
        ("/events", f'[{{"video_id":"v","time":{T0},"type":"view","count":{literal}}}]'),
        ("/counters", f'[{{"video_id":"v","time":{T0},"views":{literal}}}]'),
        ("/events", f'[{{"video_id":"v","time":{literal},"type":"view"}}]'),
    ):
        answer = service.http.post(path, content=row, headers={"content-type": "application/json"})
        body = problem(answer, 422)
        assert body["field"] in ("count", "views", "time") and body["value"].lower()[:3] in ("nan", "inf", "-in")
    line = f'{{"video_id":"v","time":{T0},"type":"view","count":{literal}}}'
    body = problem(service.http.post("/events", content=line, headers={"content-type": "application/x-ndjson"}), 422)
    assert body["field"] == "count"
    assert service.dump() == before


def test_events_and_counters_mixed(service: Live) -> None:
    service.register("v")
    service.post("/events", [{**OK_EVENT, "type": "like"}])
    before = service.dump()
    body = problem(service.http.post("/counters", json=[OK_COUNTERS]), 422)
    assert (body["field"], body["value"]) == ("likes", "3") and "events" in body["allowed"]
    assert service.dump() == before
    whole = {"video": OK_VIDEO, "events": [{"time": T0, "type": "view"}], "counters": [{"time": T0, "views": 3}]}
    assert problem(service.http.post("/predict", json=whole), 422)["field"] == "counters[0].views"
    assert service.dump() == before


BAD_PREDICTIONS = [
    ("missing published_at", {"video": {"video_id": "new", "title": "t"}}, "published_at"),
    ("not registered", {"video": {"video_id": "new"}}, "published_at"),
    ("published in the future", {"video": {"video_id": "new", "published_at": NOW + 3600}}, "published_at"),
    ("no zone", {"video": {"video_id": "new", "published_at": "2026-01-01T00:00:00"}}, "published_at"),
    ("no video", {"video": None}, "video"),
    ("long id", {"video": {"video_id": "x" * 10_000, "published_at": T0}}, "video_id"),
    ("duration", {"video": {**OK_VIDEO, "duration_s": -1}}, "duration_s"),
    ("title", {"video": {**OK_VIDEO, "title": 5}}, "title"),
    ("horizon 0", {"horizons_s": [0]}, "horizons_s"),
    ("horizon below zero", {"horizons_s": [3600, -1]}, "horizons_s"),
    ("horizon beyond", {"horizons_s": [MAX_H + 1]}, "horizons_s"),
    ("horizon of text", {"horizons_s": ["1h"]}, "horizons_s"),
    ("horizon true", {"horizons_s": [True]}, "horizons_s"),
    ("horizon too small", {"horizons_s": [1e-9]}, "horizons_s"),
    ("no horizon", {"horizons_s": []}, "horizons_s"),
    ("too many horizons", {"horizons_s": list(range(1, 100))}, "horizons_s"),
    ("threshold 0", {"thresholds": [0]}, "thresholds"),
    ("threshold below zero", {"thresholds": [1000, -1]}, "thresholds"),
    ("threshold of text", {"thresholds": ["1000"]}, "thresholds"),
    ("threshold true", {"thresholds": [True]}, "thresholds"),
    ("threshold null", {"thresholds": [None]}, "thresholds"),
    ("threshold alone", {"thresholds": 1000}, "thresholds"),
    ("no threshold", {"thresholds": []}, "thresholds"),
    ("too many thresholds", {"thresholds": list(range(1, 18))}, "thresholds"),
    ("at before publication", {"at": T0 - 1}, "at"),
    ("at in the future", {"at": NOW + 3600}, "at"),
    ("bad event", {"events": [{"time": T0, "type": "view"}, {"time": T0, "type": "clap"}]}, "events[1].type"),
    ("event before publication", {"events": [{"time": T0 - 1, "type": "view"}]}, "events[0].time"),
    ("event of another video", {"events": [{"video_id": "o", "time": T0, "type": "view"}]}, "events[0].video_id"),
    ("bad counter", {"counters": [{"time": T0, "views": -1}]}, "counters[0].views"),
    ("unknown field", {"horizon": 5}, "horizon"),
]


@pytest.mark.parametrize(("change", "field"), [b[1:] for b in BAD_PREDICTIONS], ids=[b[0] for b in BAD_PREDICTIONS])
def test_invalid_predictions(service: Live, change: dict[str, Any], field: str) -> None:
    body = problem(service.http.post("/predict", json={"video": OK_VIDEO, **change}), 422)
    assert body["field"] == field and body["allowed"] and "value" in body
    assert service.dump() == {}


def test_prediction_with_nan(service: Live) -> None:
    for name in ("horizons_s", "thresholds"):
        text = json.dumps({"video": OK_VIDEO, name: [float("nan")]})
        body = problem(service.http.post("/predict", content=text, headers={"content-type": "application/json"}), 422)
        assert (body["field"], body["value"]) == (name, "nan")
    assert service.dump() == {}


@pytest.mark.parametrize(
    "query",
    [
        "horizons_s=0",
        "horizons_s=-1",
        f"horizons_s={MAX_H + 1}",
        "horizons_s=x",
        "horizons_s=nan",
        "thresholds=0",
        "thresholds=inf",
        "thresholds=1e400",
        "thresholds=5,x",
        "thresholds=" + ",".join(map(str, range(1, 18))),
    ],
)
def test_invalid_forecast_queries(service: Live, query: str) -> None:
    service.register("v")
    assert problem(service.http.get(f"/videos/v/forecast?{query}"), 422)["field"] == query.partition("=")[0]
    assert problem(service.http.get(f"/videos/v/forecast?at={T0 - 1}"), 422)["field"] == "at"


def test_invalid_registrations(service: Live) -> None:
    assert problem(service.http.put("/videos/v", json={"title": "t"}), 422)["field"] == "published_at"
    assert problem(service.http.put(f"/videos/{'x' * 10_000}", json={"published_at": T0}), 422)["field"] == "video_id"
    assert problem(service.http.put("/videos/v", json=[1]), 422)["field"] == "body"
    assert (
        problem(service.http.put("/videos/v", json={"video_id": "w", "published_at": T0}), 422)["field"] == "video_id"
    )
    assert problem(service.http.put("/videos/%FF", json={"published_at": T0}), 422)["field"] == "video_id"
    assert service.dump() == {}
    service.register("v")
    service.post("/events", [OK_EVENT])
    before = service.dump()
    assert problem(service.http.put("/videos/v", json={"published_at": T0 + 1}), 409)["field"] == "published_at"
    assert service.dump() == before


def test_a_body_of_100_mb_is_refused_before_it_is_read(service: Live) -> None:
    size = 100_000_000
    connection = http.client.HTTPConnection(service.http.base_url.host, service.http.base_url.port, timeout=20)
    connection.putrequest("POST", "/events")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    answer = connection.getresponse()  # No byte of the body was sent.
    body = json.loads(answer.read())
    assert (answer.status, body["field"], body["value"]) == (413, "body", f"{size} bytes or more")
    connection.close()


def test_a_body_without_a_length_is_stopped_at_the_limit(service: Live) -> None:
    sent = 0

    def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 1_000_000

    answer = service.http.post("/events", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and sent < 100
    assert service.dump() == {}


def test_a_body_that_arrives_too_slowly_is_refused(empty_redis: str) -> None:
    with live(empty_redis, body_deadline_ms=100) as service:
        address = (service.http.base_url.host, service.http.base_url.port)
        with socket.create_connection(address, timeout=10) as connection:
            head = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b"[")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_gzip(service: Live) -> None:
    service.register("v")
    before = service.dump()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    good = gzip.compress(json.dumps([OK_EVENT]).encode())
    bomb = gzip.compress(b" " * 200_000_000, 6)
    for content, status in ((good[:-5], 400), (b"nonsense", 400), (b"", 400), (good + b"x", 400), (bomb, 413)):
        assert problem(service.http.post("/events", content=content, headers=headers), status)["field"] == "body"
    assert service.dump() == before
    two = gzip.compress(b"[") + gzip.compress(json.dumps(OK_EVENT).encode() + b"]")
    for content in (good, two):
        assert service.http.post("/events", content=content, headers=headers).json()["accepted"] == 1


def test_media_types(service: Live) -> None:
    content = json.dumps([OK_EVENT])
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = problem(service.http.post("/events", content=content, headers={"content-type": kind}), 415)
        assert body["field"] == "Content-Type" and "application/json" in body["allowed"]
    encoded = {"content-type": "application/json", "content-encoding": "br"}
    assert problem(service.http.post("/events", content=content, headers=encoded), 415)["field"] == "Content-Encoding"
    assert problem(service.http.post("/predict", content="{}", headers={"content-type": "application/x-ndjson"}), 415)
    assert service.dump() == {}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("{", 400),
        ("", 400),
        ("[" * 100_000, 400),
        ('{"rows": 3}', 400),
        ('"x"', 400),
        ("null", 400),
        ("[3]", 422),
        ('[{"a":1}]', 422),
    ],
)
def test_broken_json(service: Live, content: str, status: int) -> None:
    problem(service.http.post("/events", content=content, headers={"content-type": "application/json"}), status)
    assert service.dump() == {}


def test_too_many_rows(service: Live) -> None:
    body = problem(service.http.post("/events", json=[OK_EVENT] * 10_001), 422)
    assert (body["field"], body["value"]) == ("rows", "more than 10000 rows")
    assert service.dump() == {}


def test_broken_lines_are_reported_by_index(service: Live) -> None:
    service.register("v")
    lines = json.dumps(OK_EVENT) + "\n\n{broken\n" + json.dumps(OK_EVENT) + "\n"
    answer = service.http.post("/events", content=lines, headers={"content-type": "application/x-ndjson"}).json()
    assert (answer["accepted"], answer["rejections"][0]["index"], answer["rejections"][0]["field"]) == (2, 1, "line")


def test_lone_surrogates(service: Live) -> None:
    for text in (
        '[{"video_id":"\\ud800","time":1,"type":"view"}]',
        '[{"video_id":"\\ud800","time":1,"type":"view","count":NaN}]',
    ):
        answer = service.http.post("/events", content=text, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text
    assert service.dump() == {}


def test_unknown_routes_and_methods(service: Live) -> None:
    assert problem(service.http.get("/nothing"), 404)["value"] == "/nothing"
    assert problem(service.http.get("/videos/a/b"), 404)
    assert problem(service.http.get("/videos/nobody"), 404)["field"] == "video_id"
    assert problem(service.http.get("/videos/nobody/forecast"), 404)
    assert problem(service.http.delete("/videos/nobody"), 404)
    answer = service.http.patch("/events")
    assert problem(answer, 405)["allowed"] == answer.headers["allow"] == "POST"
