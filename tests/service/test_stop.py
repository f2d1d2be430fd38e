"""The service always stops, whoever is connected and whatever died."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.background import Running
from tests.service.conftest import Starter
from tests.service.live import T0, Process, is_dead, live, wait_until

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
    """A connection whose other end never does anything more, and never closes."""
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
def test_nobody_holds_up_a_stop(tmp_path: Path, fake_process: Starter, who: str) -> None:
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


def test_the_store_ends_also_when_it_was_started_again(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data")
    first = process.server_pid
    os.kill(first, signal.SIGKILL)
    lock = tmp_path / "data" / "store" / "server.lock"
    wait_until(lambda: lock.read_text() not in ("", str(first)))
    second = process.server_pid
    process.kill(server=False)
    wait_until(lambda: is_dead(second), 10)


@pytest.mark.parametrize("fault", [ValueError("odd"), asyncio.CancelledError(), BaseException("odd"), MemoryError()])
def test_work_that_dies_is_counted_and_begun_again(fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.background.REST_S", 0.01)
    died: list[str] = []

    class Work(Running):
        begun = 0

        async def _run(self) -> None:
            self.begun += 1
            if self.begun < 3:
                raise fault
            await asyncio.sleep(100)

    async def body() -> None:
        work = Work()
        work.died = died.append
        work.start()
        async with asyncio.timeout(5):
            while work.begun < 3:
                await asyncio.sleep(0.01)
        await work.stop()
        assert work._task is not None and work._task.done()

    asyncio.run(body())
    assert died == ["Work", "Work"]


def test_a_death_is_seen_in_the_metrics(empty_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.background.REST_S", 0.01)
    with live(empty_redis) as service:
        changes = service.context.background[0]
        assert isinstance(changes, Running) and changes._task is not None
        loop = changes._task.get_loop()
        loop.call_soon_threadsafe(changes._task.cancel)
        wait_until(lambda: 'm3tr_task_deaths_total{task="Changes"} 1.0' in service.http.get("/metrics").text)
        assert not changes._task.done()
        assert "m3tr_loop_lag_seconds_bucket" in service.http.get("/metrics").text
