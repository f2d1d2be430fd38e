"""Excess requests are refused at their head, accepted ones are finished, and probes always pass."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from model.forecast import Forecast, Request
from service.http.concurrency import ConcurrencyLimit
from service.http.load_shedding import classify
from tests.service.fakes import FakeForecaster
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow


class SlowForecaster(FakeForecaster):
    """Returns its forecasts only when the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def forecast(self, requests: Sequence[Request], **how: Any) -> list[Forecast]:
        assert self.free.wait(20)
        return super().forecast(requests, **how)


def run(body: Any) -> None:
    asyncio.run(asyncio.wait_for(body, 10))


def test_the_limit_runs_queues_and_refuses() -> None:
    async def body() -> None:
        gate = ConcurrencyLimit(2, 1, 5, 1)
        assert await gate.enter(b"") and await gate.enter(b"")
        third = asyncio.create_task(gate.enter(b""))
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting, gate.refusal(b"")) == (2, 1, "full")
        gate.leave(b"")
        assert await third and (gate.running, gate.waiting, gate.refusal(b"")) == (2, 0, None)
        gate.leave(b"")
        gate.leave(b"")
        assert gate.running == 0

    run(body())


def test_the_longest_waiter_is_next() -> None:
    async def body() -> None:
        gate, order = ConcurrencyLimit(1, 9, 5, 1), list[int]()
        await gate.enter(b"")

        async def visit(i: int) -> None:
            assert await gate.enter(b"")
            order.append(i)
            gate.leave(b"")

        tasks = [asyncio.create_task(visit(i)) for i in range(5)]
        await asyncio.sleep(0)
        gate.leave(b"")
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]

    run(body())


def test_one_client_gets_no_more_than_its_share() -> None:
    async def body() -> None:
        gate = ConcurrencyLimit(4, 0, 5, 0.5)
        assert await gate.enter(b"a") and await gate.enter(b"a")
        assert gate.refusal(b"a") == "share" and gate.refusal(b"b") is None
        gate.leave(b"a")
        assert gate.refusal(b"a") is None

    run(body())


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_lost(seed: int) -> None:
    """Clients leave, are cancelled, or wait in vain at any time: the limit holds, and all slots are released."""

    async def body() -> None:
        chance, gate, highest, late = random.Random(seed), ConcurrencyLimit(3, 8, 0.004, 0.6), 0, 0

        async def visit(client: bytes) -> None:
            nonlocal highest, late
            if gate.refusal(client) is not None:
                return
            if not await gate.enter(client):
                late += 1
                return
            try:
                highest = max(highest, gate.running)
                await asyncio.sleep(chance.choice((0, 0.001, 0.004)))
            finally:
                gate.leave(client)

        tasks = []
        for _ in range(400):
            tasks.append(asyncio.create_task(visit(chance.choice((b"a", b"b", b"c")))))
            await asyncio.sleep(chance.choice((0, 0, 0.001)))
            if chance.random() < 0.2:
                chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert highest == 3 and late > 0
        assert (gate.running, gate.waiting) == (0, 0)
        assert all(gate.refusal(client) is None for client in (b"a", b"b", b"c"))
        assert not gate._held

    run(body())


@pytest.mark.parametrize(
    ("method", "path", "length", "kind"),
    [
        ("GET", b"/videos/v/forecast", None, "reads"),
        ("POST", b"/predict", b"100000", "reads"),
        ("GET", b"/videos", None, "reads"),
        ("POST", b"/events", b"900", "writes"),
        ("POST", b"/counters", b"4097", "bulk"),
        ("PUT", b"/videos/v", b"5000", "writes"),
        ("DELETE", b"/videos/v", None, "writes"),
        ("GET", b"/health/ready", None, None),
        ("GET", b"/metrics", None, None),
        ("GET", b"/", None, None),
        ("GET", b"/videos/v/forecast/stream", None, None),
        ("GET", b"/videos/a%2Fforecast%2Fstream", None, "reads"),
        ("GET", b"/videos/%2Fmetrics", None, "reads"),
    ],
)
def test_kinds_of_requests(method: str, path: bytes, length: bytes | None, kind: str | None) -> None:
    headers = [] if length is None else [(b"content-length", length)]
    assert classify({"type": "http", "method": method, "raw_path": path, "headers": headers}) == kind


@contextmanager
def busy(redis_url: str, **settings: Any) -> Iterator[tuple[Live, SlowForecaster, list[Future[httpx.Response]]]]:
    """A service with one slot for reads, which a forecast holds, and one waiter if there is a waiting slot."""
    forecaster = SlowForecaster()
    chosen = {"reads_in_flight": 1, "reads_waiting": 1, "wait_ms": 20_000, "forecast_reuse_ms": 0} | settings
    with live(redis_url, forecaster=forecaster, **chosen) as service, ThreadPoolExecutor(8) as pool:
        service.register("v")
        try:
            under_way = []
            for position in range(1 + chosen["reads_waiting"]):
                under_way.append(pool.submit(service.http.get, "/videos/v/forecast"))
                wait_until(lambda position=position: held(service) > position)  # type: ignore[misc]
            yield service, forecaster, under_way
        finally:
            forecaster.free.set()


def sample(service: Live, name: str) -> int:
    found = re.search(rf"^{re.escape(name)} (\S+)$", service.http.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return int(float(found[1]))


def held(service: Live) -> int:
    names = ("m3tr_reads_in_flight_requests", "m3tr_reads_waiting_requests")
    return sum(sample(service, name) for name in names)


def test_excess_requests_are_refused_and_the_others_finish(empty_redis: str) -> None:
    with busy(empty_redis) as (service, forecaster, under_way):
        refused = service.http.get("/videos/v/forecast")
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/problem+json"
        assert "connection" not in refused.headers
        response = refused.json()
        assert (response["type"], response["retryable"]) == ("urn:m3tr:problem:overloaded", True)
        assert (response["kind"], response["reason"]) == ("reads", "full")
        assert service.http.get("/videos/v").status_code == 503
        # Probes pass, and rows have slots of their own.
        assert service.http.get("/health/live").status_code == 200
        assert service.http.get("/health/ready").status_code == 200
        assert service.post("/events", [{"video_id": "v", "time": T0, "type": "view"}])["accepted"] == 1
        assert sample(service, 'm3tr_shed_requests_total{kind="reads",reason="full"}') == 2
        forecaster.free.set()
        assert [done.result(20).status_code for done in under_way] == [200, 200]
        assert service.http.get("/videos/v/forecast").status_code == 200
        assert held(service) == 0


def test_no_request_waits_longer_than_the_setting(empty_redis: str) -> None:
    with busy(empty_redis, wait_ms=50) as (service, forecaster, under_way):
        late = under_way[1].result(20)
        assert (late.status_code, late.json()["reason"]) == (503, "late")
        forecaster.free.set()
        assert under_way[0].result(20).status_code == 200
        assert sample(service, 'm3tr_shed_requests_total{kind="reads",reason="late"}') == 1
        assert held(service) == 0


def test_a_client_over_its_share_gets_429(empty_redis: str) -> None:
    with busy(empty_redis, reads_in_flight=4, reads_waiting=0, client_share=0.25) as (service, _, _):
        # Unknown keys do not count as further clients.
        for headers in ({"x-api-key": "made up"}, {"authorization": "Bearer 1"}):
            assert service.http.get("/videos/v", headers=headers).status_code == 429
        refused = service.http.get("/videos/v")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert (refused.json()["type"], refused.json()["retryable"]) == ("urn:m3tr:problem:over-share", True)


def test_shares_are_counted_by_key(empty_redis: str) -> None:
    keys = [f"predict:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("one", "two")]
    keys.append(f"admin:{hashlib.sha256(b'admin').hexdigest()}")
    chosen: dict[str, Any] = {"reads_in_flight": 4, "reads_waiting": 0, "client_share": 0.25, "forecast_reuse_ms": 0}
    forecaster = SlowForecaster()
    with live(empty_redis, forecaster=forecaster, api_keys=keys, **chosen) as service, ThreadPoolExecutor(8) as pool:
        service.http.headers["x-api-key"] = "admin"
        service.register("v")
        try:
            first = pool.submit(service.http.get, "/videos/v/forecast", headers={"x-api-key": "one"})
            wait_until(lambda: held(service) == 1)
            asked = {
                key: service.http.get("/videos/v", headers={"x-api-key": key}).status_code for key in ("one", "two")
            }
            assert asked == {"one": 429, "two": 200}
        finally:
            forecaster.free.set()
        assert first.result(20).status_code == 200


def test_slots_are_shared_among_clients() -> None:
    async def body() -> None:
        gate, order = ConcurrencyLimit(1, 9, 5, 1), list[bytes]()
        await gate.enter(b"x")

        async def visit(client: bytes) -> None:
            assert await gate.enter(client)
            order.append(client)
            gate.leave(client)

        tasks = []
        for client in (b"a", b"a", b"a", b"b", b"c"):
            tasks.append(asyncio.create_task(visit(client)))
            await asyncio.sleep(0)
        gate.leave(b"x")
        await asyncio.gather(*tasks)
        assert order == [b"a", b"b", b"c", b"a", b"a"]

    run(body())


def test_the_client_with_the_most_requests_is_displaced() -> None:
    async def body() -> None:
        gate = ConcurrencyLimit(1, 3, 5, 1)
        assert await gate.enter(b"a")
        waiting = [asyncio.create_task(gate.enter(b"a")) for _ in range(3)]
        await asyncio.sleep(0)
        assert gate.refusal(b"a") == "full" and gate.refusal(b"b") is None
        other = asyncio.create_task(gate.enter(b"b"))
        await asyncio.sleep(0.01)
        assert [task.done() for task in waiting] == [False, False, True] and not await waiting[2]
        for client, task in ((b"a", waiting[0]), (b"b", other), (b"a", waiting[1])):
            gate.leave(b"a" if task is not waiting[1] else b"b")
            assert await task, client
        gate.leave(b"a")
        assert (gate.running, gate.waiting) == (0, 0) and not gate._held and not gate._running

    run(body())


BODY = b'{"video":{"video_id":"v"}}'
PREDICT = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def exchange(service: Live, *parts: bytes) -> bytes:
    """All bytes received on one connection until it closes or falls silent."""
    with socket.create_connection((service.http.base_url.host, service.http.base_url.port or 80), 10) as line:
        for part in parts:
            line.sendall(part)
        line.settimeout(1)
        answer = b""
        try:
            while chunk := line.recv(65536):
                answer += chunk
        except TimeoutError:
            return answer + b"(open)"
        return answer


def test_a_refused_body_is_dropped_and_the_connection_stays(empty_redis: str) -> None:
    with busy(empty_redis) as (service, _, _):
        answer = exchange(service, PREDICT + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, LIVE)
        assert answer.startswith(b"HTTP/1.1 503") and b"HTTP/1.1 200" in answer and answer.endswith(b"(open)")
        late_body = exchange(service, PREDICT + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY + LIVE)
        assert late_body.startswith(b"HTTP/1.1 503") and b"HTTP/1.1 200" in late_body


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 8000000\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n",
    ],
)
def test_a_large_refused_body_closes_the_connection(empty_redis: str, head: bytes) -> None:
    with busy(empty_redis) as (service, _, _):
        answer = exchange(service, PREDICT + head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer.lower()
        assert not answer.endswith(b"(open)")


def test_streams_hold_no_slot(empty_redis: str) -> None:
    with live(empty_redis, reads_in_flight=1, reads_waiting=0) as service:
        service.register("v")
        with service.http.stream("GET", "/videos/v/forecast/stream") as stream:
            assert stream.status_code == 200
            assert service.http.get("/videos/v/forecast").status_code == 200
