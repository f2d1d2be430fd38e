"""The store stops and returns, and the service is not restarted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.redis.embedded_server import EmbeddedServer
from tests.service.running import T0, live, wait_until

ROW = {"video_id": "v", "time": T0 + 5, "type": "view", "id": "a"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path, appendfsync="always")
    server.start()
    yield server
    server.stop()


def test_reads_continue_stale_and_writes_get_503(server: EmbeddedServer) -> None:
    with live(server.url) as service:
        service.register("v", title="t")
        service.register("unseen")
        service.post("/events", [ROW])
        good = service.http.get("/videos/v/forecast", params={"at": T0 + 100}).json()
        server.stop()
        stale = service.http.get("/videos/v/forecast", params={"at": T0 + 100})
        assert stale.status_code == 200
        assert stale.json() == {**good, "stale": True, "degraded": ["store"]}
        assert service.http.get("/videos/v").json()["stale"] is True
        assert service.http.post("/predict", json={"video": {"video_id": "v"}}).json()["stale"] is True
        for answer in (
            service.http.post("/events", json=[ROW]),
            service.http.post("/counters", json=[{"video_id": "v", "time": T0, "likes": 1}]),
            service.http.put("/videos/w", json={"published_at": T0}),
            service.http.post("/predict", json={"video": {"video_id": "w", "published_at": T0}}),
            service.http.delete("/videos/v"),
            service.http.get("/videos/unseen/forecast"),
            service.http.get("/health/ready"),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.json()["retryable"] is True and int(answer.headers["retry-after"]) >= 1
        assert service.http.get("/health/live").status_code == 200
        server.start()
        wait_until(lambda: service.http.get("/health/ready").status_code == 200)
        assert service.post("/events", [ROW])["duplicate"] == 1
        assert service.http.get("/videos/v/forecast", params={"at": T0 + 100}).json() == good
        assert 'm3tr_store_failures_total{call="apply"}' in service.http.get("/metrics").text


def test_a_store_that_hangs_costs_one_deadline(server: EmbeddedServer, tmp_path: Path) -> None:
    with live(server.url, store_deadline_ms=200) as service:
        service.register("v")
        service.http.get("/videos/v/forecast")
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert service.http.post("/events", json=[ROW]).status_code == 503
            assert service.http.get("/videos/v/forecast").json()["stale"] is True
            assert time.monotonic() - started < 2
        finally:
            server._process.send_signal(signal.SIGCONT)
        wait_until(lambda: service.http.post("/events", json=[ROW]).status_code == 200)
        # The row that got 503 had reached the server; because of its id it does not count twice.
        assert service.http.get("/videos/v").json()["counts"] == {"view": 1}


def test_a_server_that_comes_back_empty(server: EmbeddedServer) -> None:
    with live(server.url) as service:
        service.register("v")
        service.post("/events", [{**ROW, "id": None}])
        service.redis.flushall()
        service.redis.function_flush()
        assert service.http.get("/videos/v").status_code == 404
        assert service.post("/events", [{**ROW, "id": None}])["parked"] == 1
