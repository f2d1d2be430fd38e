"""Clients that watch forecasts: time from an event to the update, and the memory that the clients cost.

    python -m benchmarks.service.sse [--bundle DIR] [--subscribers 1000] [--few 100] [--videos 100] [--rounds 20]

Starts ``m3tr-serve`` (with the tests' fake model unless a bundle is given) and opens streams: few, then many spread over the videos, then
many on one video. Each round posts one event for every watched video, in one batch. The latency of an update counts from before that
request until a client has the forecast with the event; every client counts. Memory is the service's resident set while they watch, without
the embedded store.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
import uvloop

from tests.service.running import FAKE_COMMAND, Process

MAX_P99_MS, MAX_MEMORY_RATIO = 250, 2.0


class Client(asyncio.Protocol):
    """One open stream; records the views of its newest forecast, and when it came."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._buffer = b""
        self.views = -1
        self.at = 0.0
        self.updates = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(f"GET {self._path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\n\n")) >= 0:
            event, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
            at = event.find(b"\ndata: {")
            if at >= 0 and b"event: forecast" in event:
                self.views = orjson.loads(event[at + 7 :])["counts"].get("view", 0)
                self.at = time.perf_counter()
                self.updates += 1


def resident_mb(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def cpu_ms(pid: int) -> float:
    """CPU time of a process, milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


async def watch(url: str, count: int, videos: int) -> list[Client]:
    """``count`` clients over the first ``videos`` videos, after each has received its first forecast."""
    loop, where = asyncio.get_running_loop(), urlsplit(url)
    host, port = where.hostname, where.port
    assert host is not None and port is not None
    clients: list[Client] = []
    for i in range(count):
        path = f"/videos/video-{i % videos}/forecast/stream?horizons_s=3600,86400"
        _, client = await loop.create_connection(partial(Client, path), host, port)
        clients.append(client)
        if i % 50 == 49:
            await until(clients, 0)
    await until(clients, 0)
    return clients


async def until(clients: list[Client], views: int, patience_s: float = 30) -> None:
    """Wait until every client has received ``views`` views."""
    end = time.perf_counter() + patience_s
    while any(client.views < views for client in clients):
        assert time.perf_counter() < end, "an update did not come"
        await asyncio.sleep(0.002)


async def rounds(http: httpx.AsyncClient, clients: list[Client], videos: int, n: int, seen: int) -> list[float]:
    """Latencies in milliseconds of every client's update in each round."""
    found: list[float] = []
    for i in range(1, n + 1):
        await asyncio.sleep(0.3)
        rows = [{"video_id": f"video-{v}", "time": time.time(), "type": "view"} for v in range(videos)]
        began = time.perf_counter()
        response = await http.post("/events", json=rows)
        assert response.status_code == 200, response.text
        await until(clients, seen + i)
        found += [(client.at - began) * 1000 for client in clients]
    return found


def report(name: str, latencies: list[float], used_ms: float) -> float:
    p50, p99, worst = np.percentile(latencies, [50, 99, 100])
    summary = f"{p50:7.1f} ms p50  {p99:7.1f} ms p99  {worst:7.1f} ms max  {used_ms:6.1f} ms of service CPU a round"
    print(f"{name:24} {summary}", flush=True)
    return float(p99)


async def measure(process: Process, args: argparse.Namespace) -> bool:
    async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        for i in range(args.videos):
            body = {"published_at": time.time() - 86_400, "title": f"A video about thing {i}"}
            assert (await http.put(f"/videos/video-{i}", json=body)).status_code == 200
        seen, worst_ms, memory = 0, 0.0, {}
        for count, videos in ((args.few, args.few), (args.subscribers, args.videos), (args.subscribers, 1)):
            videos = min(videos, args.videos)
            clients = await watch(process.url, count, videos)
            kind = f"{count} on {videos} video{'s' if videos > 1 else ''}"
            used_ms = cpu_ms(process.popen.pid)
            latencies = await rounds(http, clients, videos, args.rounds, seen)
            used_ms = (cpu_ms(process.popen.pid) - used_ms) / args.rounds
            seen += args.rounds
            memory[kind] = resident_mb(process.popen.pid)
            p99 = report(kind, latencies, used_ms)
            worst_ms = max(worst_ms, p99)
            for client in clients:
                client.transport.close()
            await asyncio.sleep(0.5)
        few, *many = memory.values()
        for kind, mb in memory.items():
            print(f"{kind:24} {mb:7.1f} MB, {mb / few:.2f} times that of the fewest")
        good = worst_ms <= MAX_P99_MS and max(many) <= MAX_MEMORY_RATIO * few
        print(
            f"p99 at most {MAX_P99_MS} ms, memory at most {MAX_MEMORY_RATIO:g} times: {'held' if good else 'NOT held'}"
        )
        return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    for name, default in {"subscribers": 1000, "few": 100, "videos": 100, "rounds": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {vars(args)}", flush=True)
    command = (
        FAKE_COMMAND if args.bundle is None else [sys.executable, "-m", "service.cli", "--bundle", str(args.bundle)]
    )
    with tempfile.TemporaryDirectory() as folder:
        process = Process(command, Path(folder) / "data", M3TR_STREAM_SUBSCRIBERS="5000")
        try:
            return 0 if uvloop.run(measure(process, args)) else 1
        finally:
            process.clean_up()


if __name__ == "__main__":
    raise SystemExit(main())
