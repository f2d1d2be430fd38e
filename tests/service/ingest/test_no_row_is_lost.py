"""No row is lost when the status is 2xx: bodies as clients really send them, and unknown counters."""

from __future__ import annotations

import gzip
import json
import socket
import time
from typing import Any

import httpx
import msgspec
import pytest
from websockets.sync.client import connect

from tests.service.running import T0, Live, live, wait_until

NDJSON = "application/x-ndjson"
ROW = {"video_id": "a", "time": T0 + 5, "type": "view"}
LINE = json.dumps(ROW).encode() + b"\n"
MARK = b"\xef\xbb\xbf"
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "TLS": b"Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n",
    "WebSocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
}


def answers(service: Live, sent: bytes, n: int, pause_at: int | None = None) -> bytes:
    """The bytes received on one connection until ``n`` responses are complete, or it is closed."""
    url = httpx.URL(str(service.http.base_url))
    with socket.create_connection((url.host, url.port or 80), timeout=10) as line:
        for part in (sent,) if pause_at is None else (sent[:pause_at], sent[pause_at:]):
            line.sendall(part)
            time.sleep(0.05)
        got = b""
        while got.count(b'"accepted"') + got.count(b'"status"') < n and (part := line.recv(65536)):
            got += part
        return got


def post(body: bytes, kind: str = NDJSON, offer: bytes = b"", chunked: bool = False) -> bytes:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    head = b"POST /events HTTP/1.1\r\nHost: x\r\n%bContent-Type: %b\r\n%b\r\n\r\n"
    return head % (offer, kind.encode(), length) + body


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("kind", [NDJSON, "application/json"])
def test_an_upgrade_offer_is_declined_and_the_body_is_read(service: Live, offer: str, kind: str, chunked: bool) -> None:
    service.register("a")
    body = LINE if kind == NDJSON else b"[" + LINE + b"]"
    # The next request follows on the same connection, with the same offer.
    sent = post(body, kind, OFFERS[offer], chunked) * 2
    got = answers(service, sent, 2)
    assert got.count(b"HTTP/1.1 200") == 2 and got.count(b'"accepted":1') == 2
    assert service.http.get("/videos/a").json()["counts"] == {"view": 2}


@pytest.mark.parametrize("pause_at", [10, 60, 140, 190])
def test_an_upgrade_offer_may_arrive_in_pieces(service: Live, pause_at: int) -> None:
    service.register("a")
    assert b'"accepted":1' in answers(service, post(LINE, offer=OFFERS["h2c"]), 1, pause_at)


def test_connect_is_refused(service: Live) -> None:
    got = answers(service, b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", 1)
    assert got.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "body", "rows"),
    [
        (NDJSON, MARK + LINE, 1),
        (NDJSON, MARK + LINE[:-1], 1),
        (NDJSON, MARK + LINE.replace(b"\n", b"\r\n") * 2 + MARK + LINE, 3),
        (NDJSON, LINE * 3000 + MARK + LINE, 3001),
        ("application/json", MARK + b"[" + LINE + b"]", 1),
        ("application/json", MARK + b'{"rows":[' + LINE + b"]}", 1),
    ],
)
def test_a_byte_order_mark_loses_no_row(service: Live, kind: str, body: bytes, rows: int, packed: bool) -> None:
    service.register("a")
    headers = {"content-type": kind} | ({"content-encoding": "gzip"} if packed else {})
    response = service.http.post("/events", content=gzip.compress(body) if packed else body, headers=headers).json()
    assert (response["accepted"], response["rejected"]) == (rows, 0)


def test_a_byte_order_mark_before_metadata_and_predictions(service: Live) -> None:
    headers = {"content-type": "application/json"}
    body = MARK + json.dumps({"published_at": T0}).encode()
    assert service.http.put("/videos/a", content=body, headers=headers).status_code == 200
    body = MARK + json.dumps({"video": {"video_id": "a"}}).encode()
    assert service.http.post("/predict", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("body", [b"", b"\n \r\n", MARK])
def test_a_body_without_the_announced_rows_is_refused(service: Live, body: bytes) -> None:
    for content in (body, gzip.compress(body)):
        headers = {"content-type": NDJSON} | ({} if content is body else {"content-encoding": "gzip"})
        answer = service.http.post("/events", content=content, headers=headers)
        assert answer.status_code == 400 and "no row" in answer.json()["detail"]
    assert service.http.post("/events", content=b"", headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.parametrize("kind", [NDJSON, "application/json"])
def test_a_body_shorter_than_announced_never_succeeds(service: Live, kind: str) -> None:
    service.register("a")
    body = LINE if kind == NDJSON else b"[" + LINE + b"]"
    sent = post(body, kind).replace(b"Content-Length: ", b"Content-Length: 1")
    url = httpx.URL(str(service.http.base_url))
    with socket.create_connection((url.host, url.port or 80), timeout=10) as line:
        line.sendall(sent)
        line.shutdown(socket.SHUT_WR)
        got = b""
        while part := line.recv(65536):
            got += part
    assert b" 200 " not in got


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("x-gzip", True),
        ("GZIP", True),
        ("gzip, identity", True),
        ("identity,gzip", True),
        ("identity", False),
        ("", False),
    ],
)
def test_names_of_content_encodings(service: Live, encoding: str, packed: bool) -> None:
    service.register("a")
    content = gzip.compress(LINE) if packed else LINE
    headers = {"content-type": NDJSON, "content-encoding": encoding}
    assert service.http.post("/events", content=content, headers=headers).json()["accepted"] == 1


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
def test_other_content_encodings_are_refused(service: Live, encoding: str) -> None:
    headers = {"content-type": NDJSON, "content-encoding": encoding}
    assert service.http.post("/events", content=LINE, headers=headers).status_code == 415


COUNTERS = {"video_id": "a", "time": T0 + 60, "views": 100, "saves": 2, "dislikes": None, "playlists": "7"}
IGNORED = {"saves": 1, "playlists": 1}


def seen(service: Live) -> Any:
    return service.http.get("/videos/a").json()["counts"]


def ignored_so_far(service: Live) -> float:
    value = service.context.metrics.registry.get_sample_value("m3tr_ingest_ignored_counters_total")
    assert value is not None
    return value


def test_an_unknown_counter_loses_no_row_of_json(service: Live) -> None:
    service.register("a")
    before = ignored_so_far(service)
    response = service.post("/counters", [COUNTERS, {**COUNTERS, "saves": 3}])
    assert (response["accepted"], response["rejected"], response["ignored"]) == (2, 0, {"saves": 2, "playlists": 2})
    assert seen(service) == {"view": 100}
    assert ignored_so_far(service) - before == 4


def test_an_unknown_counter_loses_no_line(service: Live) -> None:
    service.register("a")
    known = {name: value for name, value in COUNTERS.items() if name not in ("saves", "playlists", "dislikes")}
    lines = "\n".join(map(json.dumps, [known, COUNTERS, known]))
    response = service.http.post("/counters", content=lines, headers={"content-type": NDJSON}).json()
    assert (response["accepted"], response["rejected"], response["ignored"]) == (3, 0, IGNORED)
    assert seen(service) == {"view": 100}


def test_an_unknown_counter_loses_no_frame(service: Live) -> None:
    service.register("a")
    url = str(service.http.base_url).replace("http", "ws") + "/events/stream"
    frame = {"seq": 1, "kind": "counters", "rows": [COUNTERS]}
    for message in (json.dumps(frame), msgspec.msgpack.encode(frame)):
        with connect(url) as socket:
            socket.send(message)
            response = json.loads(socket.recv())
        assert (response["accepted"], response["ignored"]) == (1, IGNORED)
    assert seen(service) == {"view": 100}


def test_an_unknown_counter_fails_no_prediction(service: Live) -> None:
    rows = [{name: value for name, value in COUNTERS.items() if name != "video_id"}]
    body = {"video": {"video_id": "a", "published_at": T0}, "counters": rows}
    answer = service.http.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"]["ignored"] == IGNORED and answer.json()["counts"] == {"view": 100}
    assert service.http.post("/predict", json=[body]).json()[0]["rows"]["ignored"] == IGNORED


def test_an_unknown_counter_loses_no_stream_entry(empty_redis: str) -> None:
    with live(empty_redis, ingest_stream=True) as service:
        service.register("a")
        service.redis.xadd("m3tr:ingest", {"kind": "counters", "row": json.dumps(COUNTERS)})
        wait_until(lambda: seen(service) == {"view": 100})
        assert service.redis.xlen("m3tr:ingest:dead") == 0 and ignored_so_far(service) == 2


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"viewz": 3}, "viewz", "did you mean views?"),
        ({"views": 3, "type": "view"}, "type", "events only"),
        ({"views": None}, "counters", "at least one of views"),
        ({"views": 3, "colour": "red"}, "colour", "numbers of other counters"),
        ({"views": 3, "tiem": "2025-10-09T08:53:25Z"}, "tiem", "did you mean time?"),
        ({"views": 3, "live": True}, "live", "numbers of other counters"),
    ],
)
def test_a_row_without_a_known_counter_is_refused(service: Live, row: Any, field: str, words: str) -> None:
    response = service.post("/counters", [{"video_id": "a", "time": T0 + 5, **row}], 422)
    assert response["field"] == field and words in response["allowed"]


def test_an_event_of_an_unknown_type_is_still_refused(service: Live) -> None:
    response = service.post("/events", [{**ROW, "type": "save"}], 422)
    assert (response["field"], response["value"]) == ("type", "save")


def test_names_of_unknown_counters_are_limited(service: Live) -> None:
    service.register("a")
    rows = [{"video_id": "a", "time": T0 + 5, "views": 1, **{f"{i}-{n}" * 40: n for n in range(50)}} for i in range(9)]
    response = service.post("/counters", rows)
    assert response["accepted"] == 9 and len(response["ignored"]) == 100
    assert all(len(name) <= 100 for name in response["ignored"])
