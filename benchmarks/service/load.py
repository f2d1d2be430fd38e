"""A load generator in a separate process: a light HTTP/1.1 client on raw asyncio, because httpx is slower than the service.

Open loop: requests start at the times of a Poisson process, independently of earlier ones, and a latency counts from the time at which the
request was due (not from when a connection was free). Closed loop: each connection sends its next request after the last response.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httpx
import numpy as np
import uvloop
from numpy.typing import NDArray

from index_builder.datasets.load import load_dataset
from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.engagement.bins import HOUR_US

FORECAST, EVENTS = "forecast", "events"
RESET, UNSENT = 0, -1
"""In place of a status: the connection ended before the response did; no connection was free within ``PATIENCE_S``."""
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What to send: a mix of forecasts of known videos and small batches of events, for ``seconds``.

    ``rate`` is the requests per second of an open loop; None is a closed loop over all ``connections``.
    """

    url: str
    videos: int
    seconds: float
    connections: int
    rate: float | None = None
    events_share: float = 0.2
    rows: int = 10
    seed: int = 1
    types: tuple[str, ...] = ("view",)


@dataclass
class Load:
    """Results of a plan, one for each response: kind, status, start (s since the plan's start), latency (s)."""

    seconds: float
    kinds: NDArray[np.str_]
    statuses: NDArray[np.int64]
    starts: NDArray[np.float64]
    latencies: NDArray[np.float64]
    bodies: list[bytes] = field(default_factory=list)
    """Up to five bodies with a status other than 200, 429 and 503."""

    def accepted(self, kind: str | None = None) -> NDArray[np.float64]:
        """Latencies of the responses with status 200."""
        of_kind = np.ones(len(self.kinds), bool) if kind is None else self.kinds == kind
        accepted: NDArray[np.float64] = self.latencies[(self.statuses == 200) & of_kind]
        return accepted

    @property
    def goodput(self) -> float:
        """Responses with status 200 per second."""
        return len(self.accepted()) / self.seconds

    def share(self, *statuses: int) -> float:
        """Share of all requests that ended with one of ``statuses``."""
        return float(np.isin(self.statuses, statuses).mean()) if len(self.statuses) else 0.0

    def ms(self, percentile: float, kind: str | None = None) -> float:
        """A percentile of the latency of accepted requests, milliseconds."""
        values = self.accepted(kind)
        return float(np.percentile(values, percentile)) * 1000 if len(values) else float("nan")


class _Connection(asyncio.Protocol):
    def __init__(self, done: Callable[[_Connection, int, bytes], None]) -> None:
        self._done = done
        self._buffer = b""
        self.busy = False
        self.kind, self.due = "", 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def send(self, kind: str, request: bytes, due: float) -> None:
        self.busy, self.kind, self.due, self._buffer = True, kind, due, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) >= length and self.busy:
            self.busy = False
            self._done(self, int(head[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._done(self, RESET, b"")


class _Client:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._where = urlsplit(plan.url)
        self._chance = random.Random(plan.seed)
        self._samples: list[tuple[str, int, float, float]] = []
        self._bodies: list[bytes] = []
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[tuple[str, bytes, float]] = deque()

    async def run(self) -> Load:
        plan = self._plan
        self._started = time.perf_counter()
        self._end = self._started + plan.seconds
        if plan.rate is None:
            for _ in range(plan.connections):
                self._free(await self._connect())
                self._start(self._next(), time.perf_counter())
            await asyncio.sleep(plan.seconds)
        else:
            self._idle = [await self._connect() for _ in range(min(plan.connections, 64))]
            self._started = due = time.perf_counter()
            self._end = due + plan.seconds
            while due < self._end:
                if (wait := due - time.perf_counter()) > 0.0005:
                    await asyncio.sleep(wait)
                    continue
                self._start(self._next(), due)
                due += self._chance.expovariate(plan.rate)
        grace = time.perf_counter() + PATIENCE_S
        while len(self._idle) < self._open and time.perf_counter() < grace:
            await asyncio.sleep(0.05)
        kinds, statuses, starts, latencies = zip(*self._samples, strict=True) if self._samples else ((), (), (), ())
        return Load(
            plan.seconds, np.array(kinds), np.array(statuses), np.array(starts), np.array(latencies), self._bodies
        )

    async def _connect(self) -> _Connection:
        self._open += 1
        loop = asyncio.get_running_loop()
        host, port = self._where.hostname, self._where.port
        assert host is not None and port is not None
        _, made = await loop.create_connection(lambda: _Connection(self._done), host, port)
        return made

    def _next(self) -> tuple[str, bytes]:
        plan, chance = self._plan, self._chance
        # Similar to Zipf's law: a few videos get most of the traffic.
        video = int(plan.videos ** chance.random()) - 1
        if chance.random() >= plan.events_share:
            return FORECAST, b"GET /videos/video-%d/forecast HTTP/1.1\r\nhost: x\r\n\r\n" % video
        now = time.time()
        rows = ",".join(
            f'{{"video_id":"video-{int(plan.videos ** chance.random()) - 1}","time":{now:.3f},'
            f'"type":"{chance.choice(plan.types)}"}}'
            for _ in range(plan.rows)
        )
        head = "POST /events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        return EVENTS, f"{head}{len(rows) + 2}\r\n\r\n[{rows}]".encode()

    def _start(self, request: tuple[str, bytes], due: float) -> None:
        if self._idle:
            self._idle.pop().send(*request, due)
            return
        self._waiting.append((*request, due))
        if self._open < self._plan.connections:
            asyncio.ensure_future(self._connect()).add_done_callback(lambda task: self._free(task.result()))

    def _done(self, connection: _Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        if connection.due < self._end:
            self._samples.append((connection.kind, status, connection.due - self._started, now - connection.due))
        if status not in (200, 429, 503) and len(self._bodies) < 5:
            self._bodies.append(body[:300])
        if status == RESET or connection.transport.is_closing():
            self._open -= 1
            return
        if self._plan.rate is None and now < self._end:
            connection.send(*self._next(), now)
        else:
            self._free(connection)

    def _free(self, connection: _Connection) -> None:
        now = time.perf_counter()
        while self._waiting:
            kind, request, due = self._waiting.popleft()
            if now - due < PATIENCE_S:
                connection.send(kind, request, due)
                return
            self._samples.append((kind, UNSENT, due - self._started, now - due))
        self._idle.append(connection)


def _run(plan: Plan) -> Load:
    return uvloop.run(_Client(plan).run())


@contextmanager
def client() -> Iterator[Callable[[Plan], Future[Load]]]:
    """A client process that runs plans, one after the other."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda plan: pool.submit(_run, plan)


@contextmanager
def service(bundle: Path, data_dir: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``m3tr-serve`` with a new embedded store; yield its address and process."""
    command = [sys.executable, "-m", "service.cli", "--bundle", str(bundle), "--data-dir", str(data_dir), "--port", "0"]
    log = data_dir.with_name("service.log")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listens on" not in line:
            raise SystemExit(f"the service does not start: {log.read_text()}")
        yield line.split()[-1], process
    finally:
        process.terminate()
        process.wait(30)


def bundle_copy(bundle: Path | None, folder: Path) -> Path:
    """A copy of a bundle, because only one process can open an embedded bank; None trains a small bundle."""
    copy = folder / "bundle"
    if bundle is not None:
        return Path(shutil.copytree(bundle, copy))
    config = folder / "config.toml"
    config.write_text("epochs = 1\nfusion_epochs = 1\nd_model = 16\ncuts_per_video = 4\nbank_videos = 150\n", "utf-8")
    simulate(folder / "simulated", videos=150, seed=11, days=30)
    as_of_us = (load_dataset(folder / "simulated").last_us() or 0) - 14 * 24 * HOUR_US
    train(folder / "simulated", as_of_us=as_of_us, metric="view", out=copy, device="cpu", seed=1, config=config)
    return copy


def known_videos(url: str, bundle: Path, videos: int, *, warm: bool = True) -> tuple[str, ...]:
    """Register videos ``video-0`` and so on, about a day old and with a history; return the served types.

    With ``warm`` each is forecast once.
    """
    types = tuple(json.loads((bundle / "manifest.json").read_text("utf-8"))["schema"]["types"])
    with httpx.Client(base_url=url, timeout=60) as http:
        published = [time.time() - 86_400 - 60 * i for i in range(videos)]
        for i, published_at in enumerate(published):
            video = {"published_at": published_at, "title": f"video number {i}", "creator_id": f"creator-{i % 50}"}
            http.put(f"/videos/video-{i}", json=video).raise_for_status()
        rows = [
            {"video_id": f"video-{i}", "time": published_at + 7200 * j, "type": kind, "count": 10 * j}
            for i, published_at in enumerate(published)
            for j in range(1, 12)
            for kind in types
        ]
        for start in range(0, len(rows), 5000):
            http.post("/events", json=rows[start : start + 5000]).raise_for_status()
        for i in range(videos if warm else 0):
            http.get(f"/videos/video-{i}/forecast").raise_for_status()
    return types
