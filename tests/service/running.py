"""A running service in a thread, real HTTP and a real store; and a running service process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.context import Context
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.server import configuration
from service.settings import Settings
from service.times import now_us
from service.wiring import build, new_metrics
from tests.patience import Patience
from tests.service.fakes import FakeBank, FakeForecaster, FakePool
from tests.service.redis_clients import connected

ROOT = Path(__file__).parents[2]
DAY_US = 86_400_000_000
QUIET = {"labels": 0, "bank_after_s": 0, "ranking_forecasts": 0, "ingest_stream": False}
T0 = 1_760_000_000
"""A publication time, seconds since 1970."""


class Live:
    """A running service: its parts, an HTTP client, and a client of its store."""

    def __init__(self, context: Context, url: str, redis_url: str) -> None:
        self.context = context
        self.address = url
        self.http = httpx.Client(base_url=url, timeout=30)
        self.redis = connected(redis_url)

    def dump(self) -> dict[bytes, bytes | None]:
        """Everything the store holds, as comparable bytes."""
        return {key: self.redis.dump(key) for key in sorted(self.redis.keys())}

    def register(self, video_id: str, published_at: float | str = T0, **metadata: Any) -> dict[str, Any]:
        answer = self.http.put(f"/videos/{video_id}", json={"published_at": published_at, **metadata})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def post(self, path: str, rows: list[dict[str, Any]], status: int = 200) -> dict[str, Any]:
        answer = self.http.post(path, json=rows)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def live(
    redis_url: str,
    *,
    forecaster: Any = None,
    pool: Any = None,
    bank: Any = None,
    clock: Callable[[], int] = now_us,
    **settings: Any,
) -> Iterator[Live]:
    # Background work is off, except in the tests that need it.
    chosen = Settings(bundle=Path("unused"), **(QUIET | {"port": 0} | settings))
    metrics = new_metrics(chosen)
    watched = BankCircuitBreaker(bank or FakeBank(), metrics)
    model: Any = forecaster or FakeForecaster()
    states: Any = pool or FakePool()
    deployment = Deployment(model, watched, states)
    context = build(chosen, metrics, deployment, redis_url, clock)
    server = uvicorn.Server(configuration(context))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Live(context, f"http://127.0.0.1:{port}", redis_url)
        with running.http, running.redis:
            yield running
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the service did not stop"


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until a condition holds, or fail after so many seconds of a quiet machine."""
    patience = Patience(seconds)
    while not condition():
        assert not patience.over(), f"not so within {seconds:g} s"
        time.sleep(0.01)


def is_dead(pid: int) -> bool:
    """Whether a process has ended; a zombie counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Process:
    """``m3tr-serve`` as a process, with a bundle or with the fake model."""

    def __init__(self, command: list[str], data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self._errors = (data_dir.parent / f"{data_dir.name}.stderr").open("ab")
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "M3TR_DATA_DIR": str(data_dir),
                "M3TR_PORT": "0",
                # Tests share the bundle, and so its bank.
                "M3TR_BANK_AFTER_S": "0",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if "listens on" not in line:
            self.clean_up()
            raise AssertionError((line, Path(self._errors.name).read_text()))
        self.url = line.split()[-1]

    @property
    def server_pid(self) -> int:
        """Process id of the embedded server."""
        return int((self.data_dir / "store" / "server.lock").read_text())

    def kill(self, *, server: bool) -> None:
        """Kill the service with SIGKILL, and if asked its embedded server; a dead process is no error."""
        pids = [self.server_pid] if server else []
        os.killpg(self.popen.pid, signal.SIGKILL)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._end()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.popen.terminate()
        return self._end()

    def clean_up(self) -> None:
        """Kill what a failed test has left running."""
        if self.popen.returncode is None:
            with suppress(ProcessLookupError, OSError, ValueError):
                os.kill(self.server_pid, signal.SIGKILL)
            os.killpg(self.popen.pid, signal.SIGKILL)
            self._end()

    def _end(self) -> int:
        status = self.popen.wait(30)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        self._errors.close()
        return status


FAKE_COMMAND = [sys.executable, "-m", "tests.service.serve_fake"]
