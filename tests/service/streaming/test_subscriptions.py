"""Subscriptions to forecasts, over server-sent events."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from service.store import keys
from service.store.change_publisher import Change
from service.store.change_subscriber import ChangeSubscriber
from service.store.redis.embedded_server import EmbeddedServer
from service.streaming import topic
from service.streaming.topic import Subscription
from tests.service.fakes import FakeForecaster
from tests.service.running import T0, Live, Process, live, wait_until

pytestmark = pytest.mark.slow

VIEW = {"video_id": "v", "time": T0 + 5, "type": "view"}


class Watch:
    """Reads one event stream in a thread, so that a test can wait for events."""

    def __init__(self, service: Any, path: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.comments = 0
        self.ended = False
        self._response = service.http.send(service.http.build_request("GET", path), stream=True)
        assert self._response.status_code == 200, self._response.read()
        assert self._response.headers["content-type"].startswith("text/event-stream")
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        event: dict[str, Any] = {}
        try:
            for line in self._response.iter_lines():
                name, _, value = line.partition(": ")
                if line == ":":
                    self.comments += 1
                elif line and name != "retry":
                    event[name] = json.loads(value) if name == "data" else value
                elif event:
                    self.events.append(event)
                    event = {}
            self.ended = True
        except httpx.TransportError:
            pass

    def wait(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        wait_until(lambda: any(map(condition, list(self.events))))
        return next(event for event in self.events if condition(event))

    def wait_views(self, views: int) -> dict[str, Any]:
        return self.wait(lambda event: event["data"].get("counts", {}).get("view") == views)

    def close(self) -> None:
        # Closing alone does not wake the reading thread.
        with suppress(OSError):
            self._response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._response.close()
        assert not self._thread.is_alive()


@contextmanager
def watching(service: Any, path: str = "/videos/v/forecast/stream", count: int = 1) -> Iterator[list[Watch]]:
    made: list[Watch] = []
    try:
        made.extend(Watch(service, path) for _ in range(count))
        yield made
    finally:
        for watch in made:
            watch.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path, appendfsync="always")
    server.start()
    yield server
    server.stop()


def test_first_event_comes_at_once_and_then_one_per_change(service: Live) -> None:
    version = service.register("v", title="t")["version"]
    with watching(service, "/videos/v/forecast/stream?horizons_s=3600,7200") as [watch]:
        first = watch.wait(lambda event: True)
        assert (first["event"], int(first["id"])) == ("forecast", version)
        assert [f["horizon_s"] for f in first["data"]["forecasts"]] == [3600, 7200]
        service.post("/events", [VIEW])
        second = watch.wait_views(1)
        assert int(second["id"]) == service.http.get("/videos/v").json()["version"] > version
        service.register("other")
        service.post("/events", [{**VIEW, "video_id": "other"}, {**VIEW, "count": 6}])
        assert watch.wait_views(7)["data"]["video_id"] == "v"
        assert len(watch.events) == 3


def test_subscriptions_with_other_thresholds_are_not_mixed(service: Live) -> None:
    service.register("v")
    path = "/videos/v/forecast/stream?horizons_s=3600"
    with watching(service, path) as [plain], watching(service, f"{path}&thresholds=5,7") as [asked]:
        first = asked.wait(lambda event: True)["data"]
        assert [t["threshold"] for t in first["thresholds"]] == [5, 7]
        service.post("/events", [VIEW])
        assert "thresholds" not in plain.wait_views(1)["data"]
        assert len(asked.wait_views(1)["data"]["thresholds"]) == 2


def test_simultaneous_changes_make_one_event(empty_redis: str) -> None:
    with live(empty_redis, stream_interval_ms=300) as service:
        service.register("v")
        with watching(service) as [watch]:
            began = time.monotonic()
            for _ in range(60):
                service.post("/events", [VIEW])
            watch.wait_views(60)
            most = 2 + (time.monotonic() - began) / 0.3
            assert 2 <= len(watch.events) <= most < 30


def test_one_forecast_serves_all_subscribers(empty_redis: str) -> None:
    model = FakeForecaster()
    with live(empty_redis, forecaster=model, forecast_reuse_ms=0) as service:
        service.register("v")
        with watching(service, count=20) as watches:
            service.post("/events", [VIEW])
            for watch in watches:
                watch.wait_views(1)
            assert sum(model.batches) == 2
            assert "m3tr_stream_subscribers 20.0" in service.http.get("/metrics").text
        wait_until(lambda: service.context.subscriptions.subscribers == 0)
        assert service.context.subscriptions._topics == {}
        service.post("/events", [VIEW])
        time.sleep(0.3)
        assert sum(model.batches) == 2


def test_slow_client_gets_the_newest_event() -> None:
    async def body() -> list[bytes]:
        subscription = Subscription()
        for i in range(1000):
            subscription.offer(b"%d" % i)
        subscription.end(b"end")
        return [event async for event in subscription.events()]

    assert asyncio.run(body()) == [b"999", b"end"]


def test_forecast_is_refreshed_without_a_change(empty_redis: str) -> None:
    with live(empty_redis, stream_refresh_s=0.1, forecast_reuse_ms=0) as service:
        service.register("v")
        with watching(service) as [watch]:
            wait_until(lambda: len(watch.events) >= 3)
            assert len({event["id"] for event in watch.events}) == 1
            assert len({event["data"]["at"] for event in watch.events}) == len(watch.events)


def test_heartbeat_keeps_a_silent_connection_alive(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic, "HEARTBEAT_S", 0.05)
    service.register("v")
    with watching(service) as [watch]:
        wait_until(lambda: watch.comments >= 3)
        assert len(watch.events) == 1


def test_deletion_ends_the_stream_with_its_reason(service: Live) -> None:
    service.register("v")
    with watching(service) as [watch]:
        service.http.delete("/videos/v")
        assert watch.wait(lambda event: event["event"] == "end")["data"] == {"reason": "deleted"}
        wait_until(lambda: watch.ended)
    assert service.http.get("/videos/v/forecast/stream").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/videos/nobody/forecast/stream", 404, "video_id"),
        ("/videos/v/forecast/stream?horizons_s=-1", 422, "horizons_s"),
        ("/videos/v/forecast/stream?horizons_s=x", 422, "horizons_s"),
    ],
)
def test_errors_before_the_start_are_problems(service: Live, path: str, status: int, field: str) -> None:
    service.register("v")
    answer = service.http.get(path)
    assert answer.status_code == status and answer.json()["field"] == field
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.context.subscriptions.subscribers == 0


def test_failure_at_the_start_is_a_problem_and_leaves_nothing(empty_redis: str) -> None:
    model = FakeForecaster()
    model.forecast = lambda *args, **options: 1 / 0  # type: ignore[method-assign, assignment]
    with live(empty_redis, forecaster=model) as service:
        service.register("v")
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _: service.http.get("/videos/v/forecast/stream"), range(5)))
        assert {answer.status_code for answer in answers} == {500}
        assert service.context.subscriptions.subscribers == 0 and service.context.subscriptions._topics == {}


def test_subscribers_are_limited(empty_redis: str) -> None:
    with live(empty_redis, stream_subscribers=2) as service:
        service.register("v")
        with watching(service, count=2):
            refused = service.http.get("/videos/v/forecast/stream")
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["retryable"] is True
        wait_until(lambda: service.context.subscriptions.subscribers == 0)
        with watching(service, count=2) as watches:
            watches[1].wait(lambda event: True)


def test_every_replica_sends_every_change(empty_redis: str) -> None:
    with live(empty_redis) as one, live(empty_redis) as other:
        one.register("v")
        with watching(other) as [watch]:
            one.post("/events", [VIEW])
            watch.wait_views(1)


def test_stream_survives_a_restart_of_the_store(server: EmbeddedServer) -> None:
    with live(server.url, stream_refresh_s=3600) as service:
        service.register("v")
        with watching(service) as [watch]:
            service.post("/events", [VIEW])
            watch.wait_views(1)
            server.stop()
            server.start()
            # At once, so that the reader of changes is probably still disconnected.
            wait_until(lambda: service.http.post("/events", json=[VIEW]).status_code == 200)
            watch.wait_views(2)


def test_stop_ends_the_stream_with_its_reason(tmp_path: Path, fake_process: Callable[..., Process]) -> None:
    process = fake_process(tmp_path / "data")
    with httpx.Client(base_url=process.url, timeout=30) as http:
        http.put("/videos/v", json={"published_at": T0})
        holder = type("Holder", (), {"http": http})()
        with watching(holder) as [watch]:
            watch.wait(lambda event: event["event"] == "forecast")
            began = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - began < 5
            assert watch.wait(lambda event: event["event"] == "end")["data"] == {"reason": "stopping"}
            wait_until(lambda: watch.ended)


class Ear:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.heard: list[Change] = []
        self.misses = 0

    def changed(self, changes: Any) -> None:
        self.heard += changes

    def missed(self) -> None:
        self.misses += 1


def follow(url: str, work: Callable[[ChangeSubscriber, Ear, redis.Redis], Any]) -> Ear:
    async def body() -> Ear:
        ear, changes = Ear(), ChangeSubscriber(url, 2)
        changes.on_change(ear)
        changes.start()
        try:
            with redis.Redis.from_url(url) as client:
                while changes._position is None:
                    await asyncio.sleep(0.01)
                await work(changes, ear, client)
        finally:
            await changes.stop()
        return ear

    return asyncio.run(body())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def add(client: redis.Redis, *changes: tuple[str, int], **fields: str) -> None:
    client.xadd(keys.CHANGES, {"videos": json.dumps(changes), **fields})  # type: ignore[dict-item]


def test_changes_are_read_from_now_on_and_invalid_entries_are_skipped(empty_redis: str) -> None:
    with redis.Redis.from_url(empty_redis) as client:
        add(client, ("old", 1))

    async def work(changes: ChangeSubscriber, ear: Ear, client: redis.Redis) -> None:
        add(client, ("a", 1), ("b", 2))
        client.xadd(keys.CHANGES, {"videos": "no json"})
        client.xadd(keys.CHANGES, {"other": "x"})
        add(client, ("c", 0))
        await until(lambda: len(ear.heard) == 3)

    ear = follow(empty_redis, work)
    assert ear.heard == [("a", 1), ("b", 2), ("c", 0)] and ear.misses == 0


def test_interruption_loses_no_change(empty_redis: str) -> None:
    async def work(changes: ChangeSubscriber, ear: Ear, client: redis.Redis) -> None:
        for i in range(200):
            add(client, (f"v{i}", i + 1))
            if i % 50 == 25:
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.02)
        await until(lambda: len(ear.heard) >= 200)

    ear = follow(empty_redis, work)
    assert ear.heard == [(f"v{i}", i + 1) for i in range(200)] and ear.misses == 0


def test_trimmed_changes_are_reported_as_missed(empty_redis: str) -> None:
    async def work(changes: ChangeSubscriber, ear: Ear, client: redis.Redis) -> None:
        add(client, ("a", 1))
        await until(lambda: ear.heard)
        client.client_kill_filter(_type="normal", skipme=True)
        changes._position = "1-0"
        add(client, ("b", 1))
        client.xtrim(keys.CHANGES, maxlen=1, approximate=False)
        await until(lambda: ear.misses)
        add(client, ("c", 1))
        await until(lambda: ("c", 1) in ear.heard)
        # The store has lost its newest entries, or all.
        misses = ear.misses
        client.delete(keys.CHANGES)
        client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: ear.misses > misses)
        add(client, ("d", 1))
        await until(lambda: ("d", 1) in ear.heard)

    follow(empty_redis, work)
