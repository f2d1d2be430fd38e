"""Limits of work and not of requests: bytes, values, heads, connections, and slow clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.http.budget import Budget
from service.http.value_limit import count_values
from service.problems import Overloaded, OverShare
from service.strict_json import parse_json
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

ROW = {"video_id": "a", "time": T0 + 5, "type": "view"}
JSON = {"content-type": "application/json"}


@contextmanager
def line(service: Live, sent: bytes = b"", buffer: int | None = None) -> Iterator[socket.socket]:
    url = httpx.URL(str(service.http.base_url))
    with socket.socket() as made:
        if buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.settimeout(10)
        made.connect((url.host, url.port or 80))
        made.sendall(sent)
        yield made


def rest(made: socket.socket) -> bytes:
    got = b""
    try:
        while part := made.recv(65536):
            got += part
    except ConnectionError:
        got += b"<reset>"
    return got


def sample(service: Live, name: str) -> float:
    lines = service.http.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def test_the_budget_is_shared_and_released() -> None:
    budget = Budget(100)
    budget.take(b"a", 50)
    with pytest.raises(OverShare):
        budget.take(b"a", 1)
    budget.take(b"b", 30)
    with pytest.raises(Overloaded):
        budget.take(b"c", 21)
    budget.give(b"a", 50)
    budget.take(b"c", 21)
    assert (budget.held, budget.taken) == (51, 101)


def test_bodies_in_memory_are_limited_over_all_requests(empty_redis: str) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    with live(empty_redis, body_memory_bytes=2**20) as service:
        service.register("a")
        with line(service, head + b" " * 400_000):
            wait_until(lambda: sample(service, "m3tr_body_held_bytes") >= 400_000)
            refused = service.http.post("/events", content=b" " * 200_000, headers=JSON)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            # Small bodies fit all the time.
            assert service.post("/events", [ROW])["accepted"] == 1
        wait_until(lambda: sample(service, "m3tr_body_held_bytes") == 0)
        assert service.http.post("/events", content=b" " * 200_000, headers=JSON).status_code == 400


def test_slow_bodies_hold_no_slot(empty_redis: str) -> None:
    """Slots are for work; a body that has not arrived is not work yet."""
    head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n["
    with live(empty_redis, writes_in_flight=1, writes_waiting=0, reads_in_flight=1, reads_waiting=0) as service:
        service.register("a")
        predict = head.replace(b"/events", b"/predict")
        with line(service, head), line(service, head), line(service, predict), line(service, predict):
            time.sleep(0.2)
            assert service.post("/events", [ROW])["accepted"] == 1
            assert service.http.get("/videos/a/forecast").status_code == 200


def test_clients_that_do_not_read_hold_no_slot_and_are_disconnected(empty_redis: str) -> None:
    ask = b"GET /videos/a HTTP/1.1\r\nHost: x\r\n\r\n"
    with live(empty_redis, reads_in_flight=2, reads_waiting=0, write_deadline_ms=1000) as service:
        service.register("a", title="x" * 4000, description="y" * 40_000)
        with line(service, ask * 400, 4096), line(service, ask * 400, 4096):
            time.sleep(0.3)
            for _ in range(20):
                assert service.http.get("/videos/a").status_code == 200
            wait_until(lambda: sample(service, "m3tr_connections") <= 1, 10)


def test_a_gzip_stream_is_unpacked_piece_by_piece(empty_redis: str) -> None:
    """The lines are so long that a full batch would take 640 MB; not even a tenth of that is held."""
    text = (json.dumps({**ROW, "id": "0"}).encode() + b" " * 60_000 + b"\n") * 2000
    packed = gzip.compress(text)
    assert len(text) > 100e6 and len(packed) < 1e6
    with live(empty_redis) as service:
        service.register("a")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
        response = service.http.post("/events", content=packed, headers=headers).json()
        assert response["accepted"] + response["duplicate"] == 2000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


COSTLY = {
    "lists": b"[" + b"[]," * 2_600_000 + b"[]]",
    "objects": b"[" + b"{}," * 2_600_000 + b"{}]",
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(700_000)) + b"}",
    "numbers": b"[" + b"0," * 4_000_000 + b"0]",
    "depth": b"[" * 4_000_000,
    "nans": b"[" + b"NaN," * 200_000 + b"0]",
    "rows": b"[" + b",".join([json.dumps({**ROW, "type": "?"}).encode()] * 9_999) + b"]",
    "unknown counters": b'[{"video_id":"a","time":1,"views":1,'
    + b",".join(b'"%d":1' % i for i in range(200_000))
    + b"}]",
}


@pytest.mark.parametrize("path", ["/events", "/counters", "/predict", "/videos/a"])
@pytest.mark.parametrize("body", COSTLY)
def test_no_body_blocks_the_loop(service: Live, path: str, body: str) -> None:
    method = "PUT" if path.startswith("/videos") else "POST"
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - before)

    loop = service.context.engine.batcher._task.get_loop()  # type: ignore[union-attr]
    watching = asyncio.run_coroutine_threadsafe(watch(), loop)
    try:
        answer = service.http.request(method, path, content=COSTLY[body], headers=JSON)
    finally:
        watching.cancel()
    assert answer.status_code < 500, answer.text[:300]
    # 50 ms on a quiet machine; here the test's own client shares the processor.
    assert max(lags, default=0) < 0.25, max(lags)


def test_values_are_counted_by_commas_and_opening_brackets() -> None:
    assert count_values(b'[1,2,{"a":[3]}]') == 6
    assert count_values(b"0") == 1


def test_a_body_with_too_many_values_is_refused(service: Live) -> None:
    answer = service.http.post("/events", content=COSTLY["numbers"], headers=JSON)
    assert answer.status_code == 413 and "values" in answer.json()["detail"]


def test_a_costly_frame_is_refused_before_it_is_unpacked(service: Live) -> None:
    url = str(service.http.base_url).replace("http", "ws") + "/events/stream"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = b"\xdd" + (7_000_000).to_bytes(4, "big") + b"\x90" * 7_000_000
    frame = b"\x83\xa3seq\x01\xa4kind\xa6events\xa4rows" + many
    with connect(url, max_size=None, compression=None) as made:
        made.send(frame)
        response = json.loads(made.recv())
        assert "error" in response and response["error"]["field"] == "rows"
        with pytest.raises(ConnectionClosed):
            made.recv()
    with connect(url, max_size=None, compression=None) as made:
        made.send('{"seq":1,"kind":"events","rows":[' + "[]," * 2_000_000 + "0]}")
        assert json.loads(made.recv())["error"]["status"] == 413
    # Both sides hold the frame itself; its values would take half a gigabyte.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_rows_in_messagepack_are_validated_one_by_one(service: Live) -> None:
    service.register("a")
    url = str(service.http.base_url).replace("http", "ws") + "/events/stream"
    rows = [{**ROW, "type": "view" if i % 3 else "?"} for i in range(1200)]
    with connect(url) as made:
        made.send(msgspec.msgpack.encode({"seq": 7, "kind": "events", "rows": rows}))
        response = json.loads(made.recv())
    assert (response["ack"], response["accepted"], response["rejected"]) == (7, 800, 400)
    assert [refused["index"] for refused in response["rejections"]] == list(range(0, 1200, 3))


@pytest.mark.parametrize("endless", ["one header", "many headers", "a path", "a trailer", "an extension"])
def test_a_head_without_an_end_is_refused(empty_redis: str, endless: str) -> None:
    chunked = (
        b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    begin, more = {
        "one header": (b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 65536),
        "many headers": (b"GET /health/live HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 10_000),
        "a path": (b"GET /", b"a" * 65536),
        "a trailer": (chunked + b"2\r\n[]\r\n0\r\nX: ", b"a" * 65536),
        "an extension": (chunked + b"2;", b"a" * 65536),
    }[endless]
    with live(empty_redis) as service, line(service, begin) as made:
        sent = 0
        with pytest.raises((ConnectionError, TimeoutError)):
            while sent < 300e6:
                made.sendall(more)
                sent += len(more)
        assert sent < 20e6
        if "trailer" not in endless and "extension" not in endless:
            with line(service, begin + more) as again:
                got = rest(again)
                assert got.startswith(b"HTTP/1.1 431") and b"application/problem+json" in got


def test_a_trailer_is_not_a_header(service: Live) -> None:
    """It arrives after the checks that read headers."""
    service.register("a")
    body = json.dumps([ROW]).encode()
    sent = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent += b"%x\r\n%b\r\n0\r\nContent-Type: text/plain\r\nX-Request-ID: trailing\r\n\r\n" % (len(body), body)
    with line(service, sent + b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as made:
        got = rest(made)
    assert got.count(b"HTTP/1.1 200") == 2 and b'"accepted":1' in got and b"trailing" not in got


def test_a_head_must_arrive_in_time(empty_redis: str) -> None:
    with live(empty_redis, head_deadline_ms=300) as service:
        with line(service, b"GET /health/live HT") as begun, line(service) as silent:
            assert rest(begun).startswith(b"HTTP/1.1 408")
            assert rest(silent) == b""
        whole = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        with line(service, whole) as kept:
            assert kept.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.6)
            # The time between two requests has another limit; a second head that has started has this one.
            kept.sendall(whole + b"GET /he")
            assert b" 200 " in kept.recv(4096)
            assert b"HTTP/1.1 408" in rest(kept)


def test_idle_connections_are_closed_for_new_ones(empty_redis: str) -> None:
    with live(empty_redis, max_connections=8) as service:
        idle = [
            socket.create_connection((service.http.base_url.host, service.http.base_url.port or 80)) for _ in range(40)
        ]
        try:
            for _ in range(5):
                with httpx.Client(base_url=service.http.base_url) as fresh:
                    assert fresh.get("/health/live").status_code == 200
            assert sample(service, "m3tr_connections") <= 8
            assert sample(service, "m3tr_connections_evicted_total") >= 30
        finally:
            for made in idle:
                made.close()


def test_busy_connections_are_not_closed(empty_redis: str) -> None:
    watch = b"GET /videos/a/forecast/stream HTTP/1.1\r\nHost: x\r\n\r\n"
    with live(empty_redis, max_connections=8) as service:
        service.register("a")
        service.http.close()
        service.http = httpx.Client(base_url=service.http.base_url, headers={"connection": "close"})
        watching = [line(service, watch) for _ in range(8)]
        made = [one.__enter__() for one in watching]
        try:
            assert all(one.recv(20).startswith(b"HTTP/1.1 200") for one in made)
            with line(service, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n") as over:
                got = rest(over)
                assert got.startswith(b"HTTP/1.1 503") and b"retry-after" in got.lower()
        finally:
            for one in watching:
                one.__exit__(None, None, None)
        wait_until(lambda: _answers(service))


def _answers(service: Live) -> bool:
    try:
        return service.http.get("/health/live").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_websocket_message_must_arrive_in_time(empty_redis: str) -> None:
    handshake = (
        b"GET /events/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with (
        live(empty_redis, body_deadline_ms=400) as service,
        line(service, handshake) as made,
        connect(str(service.http.base_url).replace("http", "ws") + "/events/stream") as idle,
    ):
        assert b"101" in made.recv(4096)
        made.sendall(b"\x81\xfe\x10\x00abcd{")
        assert rest(made) in (b"", b"<reset>")
        # An idle WebSocket stays open.
        idle.send(json.dumps({"seq": 1, "kind": "events", "rows": [ROW]}))
        assert json.loads(idle.recv())["ack"] == 1


def test_broken_json_is_parsed_only_once() -> None:
    with pytest.raises(Exception, match="not valid JSON"):
        parse_json(b"[" + b"1," * 100_000)
