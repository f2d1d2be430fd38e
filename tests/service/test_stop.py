"""The service always stops, whatever is connected and whatever has failed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.bank import EmptyBank
from model.errors import BankError
from service.background import BackgroundTask
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.models.shadow import Shadow
from service.settings import Settings
from service.wiring import new_metrics
from tests.service.conftest import Starter
from tests.service.deployment.test_deployment import ShadowKit, until
from tests.service.running import T0, Process, is_dead, live, wait_until

pytestmark = pytest.mark.slow

HANDSHAKE = (
    b"GET /events/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CLIENTS = {
    "an idle connection": b"",
    "half a head": b"GET /health",
    "half a body": b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n[",
    "a stream of rows": b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
    "an idle WebSocket": HANDSHAKE,
    "half a frame": HANDSHAKE + b"\x81\xfe\x10\x00abcd{",
    "a watcher": b"GET /videos/v/forecast/stream HTTP/1.1\r\nHost: x\r\n\r\n",
    "one who does not read": b"GET /videos/v HTTP/1.1\r\nHost: x\r\n\r\n" * 900,
}


@contextmanager
def client(url: str, sent: bytes) -> Iterator[socket.socket]:
    """A connection whose client neither sends, reads nor closes any more."""
    there = httpx.URL(url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((there.host, there.port or 80))
        line.sendall(sent)
        yield line


def stop_within(process: Process, seconds: float) -> None:
    pid = process.server_pid
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(seconds) == 0
    assert time.monotonic() - began < seconds
    assert is_dead(pid), "the store was left behind"
    process._end()


@pytest.mark.parametrize("who", [*CLIENTS, "all of them"])
def test_no_client_holds_up_a_stop(tmp_path: Path, fake_process: Starter, who: str) -> None:
    process = fake_process(tmp_path / "data", M3TR_DRAIN_S="0", M3TR_SHUTDOWN_S="2")
    with httpx.Client(base_url=process.url) as http:
        assert http.put("/videos/v", json={"published_at": T0, "description": "x" * 40_000}).status_code == 200
    with ExitStack() as stack:
        for name, sent in CLIENTS.items():
            if who in (name, "all of them"):
                stack.enter_context(client(process.url, sent))
        time.sleep(0.5)
        stop_within(process, 8)


def test_a_second_signal_does_not_leave_the_store_behind(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data", M3TR_DRAIN_S="0", M3TR_SHUTDOWN_S="1")
    pid = process.server_pid
    with client(process.url, HANDSHAKE):
        for _ in range(20):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        process.popen.wait(10)
    assert is_dead(pid)
    process._end()


def test_the_store_ends_with_a_service_that_was_killed(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data")
    pid = process.server_pid
    process.kill(server=False)
    wait_until(lambda: is_dead(pid), 10)


def test_a_restarted_store_ends_too(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data")
    first = process.server_pid
    os.kill(first, signal.SIGKILL)
    lock = tmp_path / "data" / "store" / "server.lock"
    wait_until(lambda: lock.read_text() not in ("", str(first)))
    second = process.server_pid
    process.kill(server=False)
    wait_until(lambda: is_dead(second), 10)


@pytest.mark.parametrize("fault", [ValueError("odd"), asyncio.CancelledError(), BaseException("odd"), MemoryError()])
def test_failed_task_is_counted_and_restarted(fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.background.REST_S", 0.01)
    died: list[str] = []

    class Work(BackgroundTask):
        started = 0

        async def _run(self) -> None:
            self.started += 1
            if self.started < 3:
                raise fault
            await asyncio.sleep(100)

    async def body() -> None:
        work = Work()
        work.on_death = died.append
        work.start()
        async with asyncio.timeout(5):
            while work.started < 3:
                await asyncio.sleep(0.01)
        await work.stop()
        assert work._task is not None and work._task.done()

    asyncio.run(body())
    assert died == ["Work", "Work"]


def test_every_task_death_is_counted_in_the_metrics(
    empty_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks of a service with all parts on, except the shadow, which needs a second model."""
    monkeypatch.setattr("service.background.REST_S", 0.01)
    everything: dict[str, Any] = {"labels": 100, "bank_after_s": 60, "ranking_forecasts": 5, "ingest_stream": True}
    with live(empty_redis, **everything, bundles=tmp_path) as service:
        tasks = [task for work in service.context.background for task in work.tasks if not isinstance(task, Shadow)]
        names = {type(task).__name__ for task in tasks}
        assert names >= {
            "Health",
            "Readiness",
            "ChangeSubscriber",
            "RankingUpdater",
            "Adaptation",
            "Sampler",
            "Scorer",
            "BankAdmission",
            "Consumer",
            "ActiveVersion",
        }
        for task in tasks:
            assert task._task is not None
            task._task.get_loop().call_soon_threadsafe(task._task.cancel)

        def counted() -> set[str]:
            text = service.http.get("/metrics").text
            return {name for name in names if f'm3tr_task_deaths_total{{task="{name}"}}' in text}

        wait_until(lambda: counted() == names)
        assert not any(task._task is None or task._task.done() for task in tasks), "restarted"
        assert "m3tr_loop_lag_seconds_bucket" in service.http.get("/metrics").text


def test_failed_shadow_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.background.REST_S", 0.01)

    async def body() -> None:
        kit, died = ShadowKit(), list[str]()
        kit.shadow.on_death = died.append
        for _ in range(2):
            kit.shadow.begin(kit.deployment)
            await asyncio.sleep(0)
            assert kit.shadow._task is not None
            kit.shadow._task.cancel()
            await until(lambda: bool(died))
            kit.answer()
            await until(lambda: bool(kit.results))
            assert died == ["Shadow"] and await kit.shadow.end() is kit.deployment
            died.clear()
            kit.results.clear()
        kit.shadow.close()

    asyncio.run(body())


def test_failed_retry_of_the_bank_is_restarted() -> None:
    class Failing(EmptyBank):
        asked = 0

        def search(self, queries: Any) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise BankError("down")
            if self.asked < 4:
                raise SystemExit
            return []

    metrics = new_metrics(Settings(bundle=Path("unused")))
    bank = BankCircuitBreaker(Failing(), metrics, retry_s=0.01)
    with pytest.raises(BankError):
        bank.search([])
    wait_until(lambda: not bank.down)
    assert 'm3tr_task_deaths_total{task="BankRetry"} 2.0' in metrics.exposition().decode()
