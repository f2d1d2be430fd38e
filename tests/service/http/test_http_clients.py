"""HTTP as clients really use it: probes, browsers, proxies, lists in queries, numbers as text, request ids."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.http.hosts import Hosts
from service.problems import Forbidden
from tests.service.conftest import Starter
from tests.service.running import T0, Live, live, wait_until

KEY = "a-key-of-these-tests"
ADMIN = ("admin:" + hashlib.sha256(KEY.encode()).hexdigest(),)
ROW = {"video_id": "a", "time": T0 + 5, "type": "view"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "path",
    [
        "/health/live",
        "/health/ready",
        "/metrics",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/videos",
        "/videos/a",
        "/models",
        "/quality",
        "/videos/a/forecast",
        "/videos/a/forecast/stream",
        "/docs/swagger-ui.css",
    ],
)
def test_head_responds_like_get_without_the_body(service: Live, path: str) -> None:
    service.register("a")
    head = service.http.head(path)
    assert head.status_code == 200 and head.content == b""
    if not path.endswith("stream"):
        assert head.headers["content-type"] == service.http.get(path).headers["content-type"]
    assert service.http.head("/videos/none").status_code == 404
    refused = service.http.head("/events")
    assert refused.status_code == 405
    assert service.http.delete("/metrics").headers["allow"] == "GET, HEAD"
    wait_until(lambda: service.context.subscriptions.subscribers == 0)


def test_a_browser_watches_with_its_key_in_the_query(empty_redis: str, capfd: pytest.CaptureFixture[str]) -> None:
    with live(empty_redis, api_keys=ADMIN) as service:
        service.http.headers["x-api-key"] = KEY
        service.register("a")
        del service.http.headers["x-api-key"]
        path = "/videos/a/forecast/stream"
        assert service.http.get(path).status_code == 401
        assert service.http.get(f"{path}?api_key=wrong").status_code == 401
        with service.http.stream("GET", f"{path}?horizons_s=3600&api_key={KEY}") as answer:
            assert answer.status_code == 200
            assert "event: forecast" in answer.iter_lines()
        # On no other route, because the query would stay in the logs of every proxy; and the key is not shown.
        assert service.http.get(f"/videos/a?api_key={KEY}").status_code == 401
        response = service.http.get(f"/videos/a?api_key={KEY}", headers={"x-api-key": KEY})
        assert response.status_code == 422 and KEY not in response.text
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "query",
    [
        "horizons_s[]=3600",
        "horizons_s%5B%5D=3600",
        "horizons_s[0]=3600",
        "horizons_s=3600",
        "horizons_s[]=3600&horizons_s[]=3600",
    ],
)
def test_lists_in_queries(service: Live, query: str) -> None:
    service.register("a")
    answer = service.http.get(f"/videos/a/forecast?{query}")
    assert [one["horizon_s"] for one in answer.json()["forecasts"]] == [3600]


@pytest.mark.parametrize(
    ("method", "path", "field", "words"),
    [
        ("GET", "/videos/a/forecast?horizon_s=3600", "horizon_s", "did you mean horizons_s?"),
        ("GET", "/videos/a/forecast?horizons=3600", "horizons", "did you mean horizons_s?"),
        ("GET", "/videos/a/forecast?threshold=1", "threshold", "did you mean thresholds?"),
        ("GET", "/videos/a/forecast?At=1", "At", "did you mean at?"),
        ("GET", "/videos/a/forecast/stream?at=1", "at", "horizons_s"),
        ("GET", "/videos?sorted=views", "sorted", "did you mean sort?"),
        ("GET", "/videos?limit=1&limit=2", "limit", "one value"),
        ("GET", "/videos/a?x=1", "x", "no parameter"),
        ("GET", "/models?x=1", "x", "no parameter"),
        ("GET", "/quality?x=", "x", "no parameter"),
        ("PUT", "/videos/a?title=x", "title", "no parameter"),
        ("DELETE", "/videos/a?x=1", "x", "no parameter"),
        ("POST", "/events?x=1", "x", "no parameter"),
        ("POST", "/predict?x=1", "x", "no parameter"),
    ],
)
def test_unknown_parameters_are_named(service: Live, method: str, path: str, field: str, words: str) -> None:
    service.register("a")
    answer = service.http.request(method, path, json={"published_at": T0})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field and words in answer.json()["allowed"]


def test_probes_take_any_parameter(service: Live) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert service.http.get(f"{path}?_=123").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/counters", [{"video_id": "a", "time": T0 + 5, "views": "1200"}]),
        ("POST", "/counters", [{"video_id": "a", "time": str(T0 + 5), "views": 1200}]),
        ("POST", "/events", [{**ROW, "count": "3"}]),
        ("POST", "/events", [{**ROW, "reach": "3"}]),
        ("PUT", "/videos/a", {"published_at": T0, "duration_s": "253"}),
        ("PUT", "/videos/a", {"published_at": str(T0)}),
        ("POST", "/predict", {"video": {"video_id": "a"}, "counters": [{"time": T0 + 5, "views": "3"}]}),
        ("POST", "/predict", {"video": {"video_id": "a"}, "at": str(T0)}),
    ],
)
def test_a_number_as_text_is_named_as_text(service: Live, method: str, path: str, body: Any) -> None:
    service.register("a")
    answer = service.http.request(method, path, json=body)
    assert answer.status_code == 422 and "text" in answer.json()["detail"], answer.text


def test_a_mistyped_field_gets_a_suggestion(service: Live) -> None:
    service.register("a")
    for body, words in (
        ({"video": {"video_id": "a"}, "horizon_s": [1]}, "did you mean horizons_s?"),
        ({"video": {"video_id": "a"}, "event": []}, "did you mean events?"),
        ({"video": {"video_id": "a"}, "events": [{"time": T0, "typ": "view"}]}, "did you mean type?"),
    ):
        answer = service.http.post("/predict", json=body)
        assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


LONE = '"\\ud800"'


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/videos/a", f'{{"published_at":{T0},"title":{LONE}}}'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},"tags":[{LONE}]}}'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},"further":[{LONE}]}}'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},{LONE}:1}}'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},"title":{LONE},"further":NaN}}'),
        ("POST", "/predict", f'{{"video":{{"video_id":"a","published_at":{T0},"title":{LONE}}}}}'),
        ("POST", "/predict", f'{{"video":{{"video_id":"a","published_at":{T0},{LONE}:NaN}}}}'),
        ("POST", "/predict", f'{{"video":{{"video_id":{LONE}}}}}'),
        ("POST", "/predict", f'{{"video":{{"video_id":"a"}},"horizons_s":[{LONE}]}}'),
        ("POST", "/predict", f'{{"video":{{"video_id":"a"}},{LONE}:1}}'),
        ("POST", "/events", f'[{{"video_id":{LONE},"time":{T0},"type":"view"}}]'),
        ("POST", "/events", f'[{{"video_id":"a","time":{T0},"type":{LONE}}}]'),
        ("POST", "/events", f'[{{"video_id":"a","time":{T0},"type":"view","id":{LONE}}}]'),
        ("POST", "/counters", f'[{{"video_id":"a","time":{LONE},"views":1}}]'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},"further":{"[" * 1000}{"]" * 1000}}}'),
        ("PUT", "/videos/a", f'{{"published_at":{T0},"title":{LONE},"n":{"9" * 500}}}'),
    ],
)
def test_lone_surrogates_and_deep_values_are_client_errors(service: Live, method: str, path: str, body: str) -> None:
    service.register("a")
    answer = service.http.request(method, path, content=body, headers=JSON)
    assert answer.status_code == 422, answer.text


def test_an_unknown_counter_with_a_name_that_is_not_utf_8_is_reported(service: Live) -> None:
    body = f'[{{"video_id":"a","time":{T0 + 5},"views":1,{LONE}:2}}]'
    response = service.http.post("/counters", content=body, headers=JSON)
    assert response.status_code == 200 and response.json()["ignored"] == {"\\ud800": 1}


def test_the_docs_load_nothing_from_other_hosts(empty_redis: str) -> None:
    with live(empty_redis, root_path="/m3tr/") as service:
        for page in ("/docs", "/redoc"):
            text = service.http.get(page, headers={"x-forwarded-prefix": "/m3tr"}).text
            wanted = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)|url: '([^']+)'""", text)
            addresses = [one or other for one, other in wanted]
            assert any("openapi.json" in address for address in addresses) and len(addresses) >= 3
            for address in addresses:
                assert not address.startswith(("/", "http")), address
                assert service.http.get(f"/{address}").status_code == 200
                # A proxy that does not strip the prefix.
                assert service.http.get(f"/m3tr/{address}").status_code == 200
        assert service.http.get("/openapi.json").json()["servers"] == [{"url": "."}]
        assert service.http.put("/m3tr/videos/a%2Fb", json={"published_at": T0}).status_code == 200
        assert service.http.get("/videos/a%2Fb/forecast").status_code == 200
        assert service.http.get("/m3tr/videos/a%2Fb/forecast").status_code == 200
        assert service.http.get("/docs/other.js").status_code == 404


def test_requests_have_ids(service: Live) -> None:
    service.register("a")
    given = {"x-request-id": "trace-1:2/3"}
    good, bad = service.http.get("/videos/a", headers=given), service.http.get("/videos/none", headers=given)
    assert good.headers["x-request-id"] == bad.headers["x-request-id"] == bad.json()["request_id"] == "trace-1:2/3"
    odd = service.http.get("/videos/none", headers={"x-request-id": 'a b"c'})
    made = [service.http.get("/nowhere").json()["request_id"] for _ in range(2)]
    assert len({odd.json()["request_id"], *made}) == 3 and '"' not in odd.json()["request_id"]
    assert service.http.get("/metrics").headers["x-request-id"]


def audited(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"event":"audit"')]
    return lines


def test_changing_requests_are_in_the_audit_log(empty_redis: str, capfd: pytest.CaptureFixture[str]) -> None:
    with live(empty_redis, api_keys=ADMIN) as service:
        service.http.headers.update({"x-api-key": KEY, "x-request-id": "r-1"})
        service.register("secret-id")
        service.post("/events", [{**ROW, "video_id": "secret-id"}, {"video_id": "b"}])
        service.http.post("/predict", json={"video": {"video_id": "secret-id"}})
        service.http.post(
            "/predict", json={"video": {"video_id": "secret-id"}, "events": [{"time": T0 + 9, "type": "like"}]}
        )
        service.http.get("/videos/secret-id")
        service.http.post("/models/none/activate")
        url = str(service.http.base_url).replace("http", "ws") + "/events/stream"
        with connect(url, additional_headers={"x-api-key": KEY}) as made:
            made.send(json.dumps({"seq": 4, "kind": "events", "rows": [ROW]}))
            made.recv()
        service.http.delete("/videos/secret-id")
        service.http.delete("/videos/secret-id", headers={"x-api-key": "wrong"})
    text = capfd.readouterr().err
    lines = audited(text)
    assert [(line["method"], line["route"], line["status"]) for line in lines if "status" in line] == [
        ("PUT", "/videos/{video_id}", 200),
        ("POST", "/events", 200),
        ("POST", "/predict", 200),
        ("POST", "/models/{version}/activate", 404),
        ("DELETE", "/videos/{video_id}", 204),
        ("DELETE", "/videos/{video_id}", 401),
    ]
    assert {line["key"] for line in lines[:-1]} == {hashlib.sha256(KEY.encode()).hexdigest()[:8]}
    assert lines[-1]["key"] is None
    assert {line["request_id"] for line in lines if line["method"] != "WS"} == {"r-1"}
    assert (lines[1]["accepted"], lines[1]["rejected"]) == (1, 1)
    assert [(line["seq"], line["accepted"]) for line in lines if line["method"] == "WS"] == [(4, 0)]
    assert KEY not in text and "secret-id" not in "".join(map(str, lines))


def test_the_audit_log_can_be_switched_off(empty_redis: str, capfd: pytest.CaptureFixture[str]) -> None:
    with live(empty_redis, audit=False) as service:
        service.register("a")
    assert not audited(capfd.readouterr().err)


def test_log_lines_have_the_request_id(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data")
    with httpx.Client(base_url=process.url) as http:
        http.put("/videos/v", json={"published_at": T0, "title": "poison"})
        assert http.get("/videos/v/forecast", headers={"x-request-id": "poisonous"}).status_code == 500
    process.stop()
    lines = [json.loads(line) for line in (tmp_path / "data.stderr").read_text().splitlines() if line.startswith("{")]
    failed = [line for line in lines if line["event"] == "a request failed"]
    assert [line["request_id"] for line in failed] == ["poisonous"]


GOOD = [
    (b"x", b""),
    (b"m3tr:8000", b""),
    (b"localhost", b""),
    (b"localhost:8000", b"http://localhost:3000"),
    (b"127.0.0.1:8000", b"http://127.0.0.1:8000"),
    (b"[::1]:8000", b"http://[::1]:8000"),
    (b"10.0.0.5", b""),
    (b"", b""),
    (b"x", b"http://x"),
    (b"app.localhost", b""),
    (b"m3tr.example.org", b"https://m3tr.example.org"),
    (b"LOCALHOST.", b""),
    (b"::1", b""),
]
BAD = [
    (b"evil.example", b""),
    (b"evil.example:8000", b""),
    (b"127.0.0.1:8000", b"https://evil.example"),
    (b"127.0.0.1", b"null"),
    (b"127.0.0.1.evil.example", b""),
    (b"localhost", b"http://localhost.evil.example"),
    (b"evil.example", b"http://evil.example"),
    (b"x", b"http://y"),
    (b"x", b"http://["),
    (b"10.0.0.5", b"http://10.0.0.6"),
    (b"EVIL.example.", b""),
]


@pytest.mark.parametrize(("host", "origin"), GOOD)
def test_requests_of_this_machine_need_no_key(host: bytes, origin: bytes) -> None:
    Hosts(["m3tr.example.org"]).check(host, origin)


@pytest.mark.parametrize(("host", "origin"), BAD)
def test_pages_of_other_sites_are_refused(host: bytes, origin: bytes) -> None:
    hosts = Hosts(["m3tr.example.org"])
    for _ in range(2):
        with pytest.raises(Forbidden):
            hosts.check(host, origin)


def test_a_service_without_keys_refuses_other_sites_everywhere(empty_redis: str) -> None:
    with live(empty_redis, allowed_hosts=("m3tr.example.org",)) as service:
        service.register("a")
        url = str(service.http.base_url).replace("http", "ws") + "/events/stream"
        for bad in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            for method, path in (
                ("GET", "/videos/a"),
                ("PUT", "/videos/a"),
                ("GET", "/metrics"),
                ("DELETE", "/videos/a"),
            ):
                answer = service.http.request(method, path, headers=bad, json={"published_at": T0})
                assert answer.status_code == 403 and answer.json()["field"] in ("Host", "Origin")
        with pytest.raises(InvalidStatus), connect(url, origin="https://evil.example"):  # type: ignore[call-overload]
            pass
        assert service.http.get("/videos/a", headers={"host": "m3tr.example.org"}).status_code == 200
        with connect(url) as made:
            made.send(json.dumps({"seq": 1, "kind": "events", "rows": [ROW]}))
            assert json.loads(made.recv())["accepted"] == 1


def test_with_keys_any_host_is_allowed(empty_redis: str) -> None:
    with live(empty_redis, api_keys=ADMIN) as service:
        headers = {"host": "m3tr.example.org", "origin": "https://app.example.org", "x-api-key": KEY}
        assert service.http.get("/videos", headers=headers).status_code == 200


def test_refused_keys_are_counted(empty_redis: str) -> None:
    predict = ("predict:" + hashlib.sha256(b"p").hexdigest(),)
    with live(empty_redis, api_keys=ADMIN + predict) as service:
        service.http.get("/videos")
        service.http.get("/videos", headers={"x-api-key": "wrong"})
        service.http.delete("/videos/a", headers={"x-api-key": "p"})
        text = service.http.get("/metrics").text
        for reason in ("missing", "unknown", "scope"):
            assert f'm3tr_refused_keys_total{{reason="{reason}"}} 1.0' in text


def test_one_key_cannot_take_all_streams(empty_redis: str) -> None:
    keys = tuple(f"admin:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("one", "two"))
    with live(empty_redis, api_keys=keys, stream_subscribers=4, stream_producers=4) as service:
        service.http.headers["x-api-key"] = "one"
        service.register("a")
        path, url = "/videos/a/forecast/stream", str(service.http.base_url).replace("http", "ws") + "/events/stream"
        with service.http.stream("GET", path), service.http.stream("GET", path):
            refused = service.http.get(path)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "5"
            with service.http.stream("GET", path, headers={"x-api-key": "two"}) as other:
                assert other.status_code == 200
        wait_until(lambda: service.context.subscriptions.subscribers == 0)
        one, two = ({"x-api-key": name} for name in ("one", "two"))
        with connect(url, additional_headers=one), connect(url, additional_headers=one):
            with pytest.raises(InvalidStatus) as raised:
                connect(url, additional_headers=one)
            assert raised.value.response.status_code == 429
            with connect(url, additional_headers=two):
                pass
