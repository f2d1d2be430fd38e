"""A bank or store that is dead, hangs or is slow costs one deadline, once; a stop breaks no request."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from model.bank import Bank, BankQuery
from model.bank.server import ServerBank
from model.errors import BankError
from model.forecast import Forecast, Request
from service.app import create_app
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.server import Server
from service.settings import Settings
from service.store.redis.embedded_server import EmbeddedServer
from service.wiring import build, new_metrics
from tests.service.conftest import Starter
from tests.service.fakes import FakeBank, FakeForecaster, FakePool
from tests.service.running import QUIET, T0, Live, live, wait_until

pytestmark = pytest.mark.slow

DEADLINE_S = 0.4
DIM = 4


class AskingForecaster(FakeForecaster):
    """Queries its bank before each batch, like the real one."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    def forecast(self, requests: Sequence[Request], **how: Any) -> list[Forecast]:
        content = np.ones(DIM, dtype=np.float32)
        queries = [BankQuery(content, None, 0, r.now_us, r.video.video_id, 3) for r in requests]
        try:
            self.bank.search(queries)
            self.bank_down = False
        except BankError:
            self.bank_down = True
        return super().forecast(requests, **how)


class Impostor(threading.Thread):
    """A fake Qdrant server: accepts connections and answers each request after ``delay_s``; None: never."""

    def __init__(self, delay_s: float | None) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        self._delay_s = delay_s
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(line)
            if self._delay_s is not None:
                threading.Thread(target=self._answer, args=(line, self._delay_s), daemon=True).start()

    def _answer(self, line: socket.socket, delay_s: float) -> None:
        body = json.dumps({"result": {"aliases": []}, "status": "ok", "time": 0}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with suppress(OSError):
            while line.recv(65536):
                time.sleep(delay_s)
                line.sendall(head + body)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(5)
        self._listener.close()
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()


def dead_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def served_by(redis_url: str, bank: Bank, **settings: Any) -> Iterator[Live]:
    """A service whose forecasts query this bank."""
    forecaster = AskingForecaster(bank)
    chosen = {"forecast_reuse_ms": 0, "bank_deadline_ms": round(DEADLINE_S * 1000)} | settings
    with live(redis_url, forecaster=forecaster, bank=bank, **chosen) as service:
        forecaster.bank = service.context.engine.active.bank
        service.register("v")
        yield service
        forecaster.bank.close()


def timed(call: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


@pytest.mark.parametrize("fault", ["hung", "late", "dead"])
def test_bank_without_answer_costs_one_deadline(empty_redis: str, fault: str) -> None:
    server = Impostor({"hung": None, "late": 3 * DEADLINE_S, "dead": None}[fault])
    server.start()
    bank = ServerBank(dead_port() if fault == "dead" else server.url, "p", DIM, DIM, DEADLINE_S)
    with served_by(empty_redis, bank) as service:
        first_s, answer = timed(lambda: service.http.get("/videos/v/forecast"))
        assert answer.status_code == 200 and answer.json()["degraded"] == ["bank"]
        assert first_s < DEADLINE_S + 0.3
        assert fault == "dead" or first_s > 0.9 * DEADLINE_S
        for path in ["/videos/v/forecast"] * 20 + ["/metrics", "/health/ready"]:
            seconds, answer = timed(lambda path=path: service.http.get(path))  # type: ignore[misc]
            assert answer.status_code == 200 and seconds < DEADLINE_S / 2, (path, seconds)
        assert answer.json()["bank"] == "down" and answer.json()["status"] == "ready"
        text = service.http.get("/metrics").text
        assert "m3tr_bank_failures_total 1.0" in text and "m3tr_bank_skipped_total 2" in text
    server.close()


class MoodyBank(FakeBank):
    """Fails while ``failing`` is set, and counts its queries."""

    failing = False
    asked = 0

    def search(self, queries: Sequence[BankQuery]) -> list[Any]:
        self.asked += 1
        if self.failing:
            raise BankError("in a mood")
        return super().search(queries)


def test_circuit_closes_when_the_bank_answers_again() -> None:
    bank = MoodyBank()
    watched = BankCircuitBreaker(bank, new_metrics(Settings(bundle=Path("unused"))), retry_s=0.02)
    try:
        assert watched.search([]) == []
        bank.failing = True
        with pytest.raises(BankError, match="mood"):
            watched.search([])
        with pytest.raises(BankError, match="has not answered"):
            watched.search([])
        with pytest.raises(BankError, match="has not answered"):
            watched.counts()
        wait_until(lambda: bank.asked > 4)
        bank.failing = False

        def answers() -> bool:
            try:
                return watched.search([]) == []
            except BankError:
                return False

        wait_until(answers)
        assert watched.counts() == {"videos": 0, "trajectories": 0}
    finally:
        watched.close()
    # A closed bank is not retried.
    bank.failing, asked = True, bank.asked
    with pytest.raises(BankError, match="mood"):
        watched.search([])
    time.sleep(0.1)
    assert bank.asked == asked + 1


def test_hanging_store_costs_one_deadline(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, appendfsync="everysec")
    server.start()
    row = {"video_id": "v", "time": T0 + 5, "type": "view", "id": "a"}
    try:
        with live(server.url, store_deadline_ms=600, forecast_reuse_ms=0) as service:
            service.register("v")
            assert service.http.get("/videos/v/forecast").json()["stale"] is False
            assert server._process is not None
            server._process.send_signal(signal.SIGSTOP)
            try:
                first_s, answer = timed(lambda: service.http.post("/events", json=[row]))
                assert answer.status_code == 503 and first_s > 0.5
                for _ in range(10):
                    seconds, answer = timed(lambda: service.http.post("/events", json=[row]))
                    assert answer.status_code == 503 and answer.headers["retry-after"] and seconds < 0.3
                    seconds, answer = timed(lambda: service.http.get("/videos/v/forecast"))
                    assert answer.status_code == 200 and answer.json()["stale"] is True and seconds < 0.3
            finally:
                server._process.send_signal(signal.SIGCONT)
            wait_until(lambda: service.http.post("/events", json=[row]).status_code == 200, 5)
            assert service.http.get("/videos/v/forecast").json()["stale"] is False
            assert service.http.get("/videos/v").json()["counts"] == {"view": 1}
    finally:
        server.stop()


class Traffic(threading.Thread):
    """Sends rows and reads over one connection until the service is gone; counts what was acknowledged."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self.url, self.number = url, number
        self.accepted, self.answers = 0, 0
        self.refused: list[int] = []
        self.broken: list[str] = []
        self.closing = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as http:
            for i in range(1_000_000):
                row = {"video_id": "v", "time": T0 + 5, "type": "view", "id": f"{self.number}-{i}"}
                try:
                    answer = http.get("/videos/v/forecast") if i % 3 == 0 else http.post("/events", json=[row])
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                    return
                self.answers += 1
                self.closing += answer.headers.get("connection") == "close"
                if answer.status_code == 200:
                    self.accepted += i % 3 != 0
                else:
                    self.refused.append(answer.status_code)


def test_stop_under_load_breaks_no_request_and_loses_no_row(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data", M3TR_DRAIN_S="0.6")
    with httpx.Client(base_url=process.url) as http, httpx.Client(base_url=process.url) as probe:
        http.put("/videos/v", json={"published_at": T0}).raise_for_status()
        where = httpx.URL(process.url)
        with socket.create_connection((where.host, where.port or 80), 10) as slow:
            body = json.dumps([{"video_id": "v", "time": T0 + 5, "type": "view", "id": "slow"}]).encode()
            head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            slow.sendall(head % len(body) + body[:10])
            traffic = [Traffic(process.url, number) for number in range(6)]
            with http.stream("GET", "/videos/v/forecast/stream") as stream:
                lines = stream.iter_lines()
                assert "event: forecast" in (next(lines), next(lines), next(lines), next(lines))
                for one in traffic:
                    one.start()
                wait_until(lambda: all(one.answers > 20 for one in traffic))
                process.popen.send_signal(signal.SIGTERM)
                wait_until(lambda: probe.get("/health/ready").status_code == 503)
                not_ready = probe.get("/health/ready")
                assert (not_ready.json()["store"], not_ready.json()["detail"]) == ("ok", "the service is stopping")
                told = list(lines)
            assert "event: end" in told and 'data: {"reason":"stopping"}' in told
            # Requests in progress are finished, even after new connections are refused.
            slow.sendall(body[10:])
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200") and b'"accepted":1' in answer, answer
        for one in traffic:
            one.join(20)
    assert process.stop() == 0
    assert [one.broken for one in traffic] == [[]] * 6
    assert [one.refused for one in traffic] == [[]] * 6
    assert all(one.closing > 0 for one in traffic)
    again = fake_process(tmp_path / "data", M3TR_DRAIN_S="0")
    counts = httpx.get(f"{again.url}/videos/v").json()["counts"]
    assert counts == {"view": 1 + sum(one.accepted for one in traffic)}
    assert again.stop() == 0


class StuckForecaster(FakeForecaster):
    free = threading.Event()

    def forecast(self, requests: Sequence[Request], **how: Any) -> list[Forecast]:
        assert self.free.wait(20)
        return super().forecast(requests, **how)


def test_request_cut_by_the_stop_gets_a_response(empty_redis: str) -> None:
    settings = Settings(bundle=Path("unused"), drain_s=0, shutdown_s=1, **QUIET)
    metrics = new_metrics(settings)
    forecaster = StuckForecaster()
    deployment: Any = Deployment(forecaster, BankCircuitBreaker(FakeBank(), metrics), FakePool())  # type: ignore[arg-type]
    context = build(settings, metrics, deployment, empty_redis)
    config = uvicorn.Config(create_app(context), port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = Server(config, context)
    thread = threading.Thread(target=server.run)
    thread.start()
    answers: list[httpx.Response] = []
    try:
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        httpx.put(f"{url}/videos/v", json={"published_at": T0}).raise_for_status()
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/videos/v/forecast", timeout=20)))
        asking.start()
        wait_until(lambda: server.server_state.tasks)
        server.should_exit = True
        asking.join(10)
        assert [answer.status_code for answer in answers] == [503]
        assert answers[0].json()["retryable"] is True and answers[0].headers["retry-after"]
    finally:
        forecaster.free.set()
        server.should_exit = True
        thread.join(20)
