"""Rows per second over HTTP, compared with the raw rate of the same event store.

    python -m benchmarks.service.ingest [--videos 1000 100000]

Starts a real service process with its embedded store (``everysec``; the model is a stand-in and not used), and a client process with
ready-made bodies: ``--connections`` concurrent batches of 1,000 events with ids, each row sent once. Videos are registered and follow
Zipf's law; times are now. The raw rate is HINCRBY of redis-py (hiredis), 1,000 in a pipeline, on the same server right afterwards;
redis-benchmark is measured too if it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import redis

from service.settings import Settings
from service.store.commit import CommitChunk
from service.store.functions import connect
from service.store.rows.row import InputRow
from service.store.rows.row_batch import RowBatch
from service.store.store import Store
from service.wiring import new_metrics

ROOT = Path(__file__).parents[2]

BATCH = 1000
TYPES, SHARES = ("view", "like", "comment", "share"), (0.70, 0.20, 0.07, 0.03)
WARM = 0.1
"""Share of the batches that are sent before the clock starts."""


@dataclass(frozen=True)
class Traffic:
    videos: int
    batches: int
    exponent: float
    ids: bool
    text_times: bool
    ndjson: bool
    connections: int
    spread: int
    seed: int


def name(i: int) -> str:
    return f"video{i:06d}"


def popularity(videos: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, videos + 1) ** -exponent
    share: np.ndarray = weights / weights.sum()
    return share


def requests(traffic: Traffic) -> Iterator[bytes]:
    """Whole HTTP requests, one for each batch."""
    chance = np.random.default_rng(traffic.seed)
    share = popularity(traffic.videos, traffic.exponent)
    kind = "application/x-ndjson" if traffic.ndjson else "application/json"
    for _ in range(traffic.batches):
        if traffic.spread:
            chosen = np.resize(chance.choice(traffic.videos, traffic.spread, replace=False), BATCH).tolist()
        else:
            chosen = chance.choice(traffic.videos, BATCH, p=share).tolist()
        kinds = chance.choice(4, BATCH, p=SHARES).tolist()
        times = (time.time() - chance.uniform(0, 5, BATCH)).round(3).tolist()
        if traffic.text_times:
            times = [str(np.datetime64(round(t * 1000), "ms")) + "Z" for t in times]
        rows = [
            {"video_id": name(v), "time": t, "type": TYPES[k]} for v, t, k in zip(chosen, times, kinds, strict=True)
        ]
        if traffic.ids:
            for row in rows:
                row["id"] = str(uuid.uuid4())
        text = "\n".join(map(json.dumps, rows)) if traffic.ndjson else json.dumps(rows)
        body = text.replace(", ", ",").replace(": ", ":").encode()
        head = f"POST /events HTTP/1.1\r\nHost: m\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        yield head.encode() + body


class Connection(asyncio.Protocol):
    """Sends the next batch after each response, until none is left."""

    def __init__(self, waiting: deque[bytes], done: asyncio.Future[None], counts: dict[str, int]) -> None:
        self.waiting, self.done, self.counts = waiting, done, counts
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if self.waiting:
            self.transport.write(self.waiting.popleft())
        elif not self.done.done():
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, _, body = self.buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if not length or len(body) < int(length):
            return
        summary = json.loads(body)
        for key in ("accepted", "duplicate", "parked", "rejected"):
            self.counts[key] = self.counts.get(key, 0) + summary.get(key, 0)
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{head!r} {body!r}")
        self.buffer = b""
        self.send()


async def send_all(port: int, batches: list[bytes], connections: int) -> tuple[float, dict[str, int]]:
    waiting, counts = deque(batches), dict[str, int]()
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(connections)]
    started = time.perf_counter()
    lines = [await loop.create_connection(partial(Connection, waiting, end, counts), "127.0.0.1", port) for end in ends]
    await asyncio.gather(*ends)
    wall = time.perf_counter() - started
    for transport, _ in lines:
        transport.close()
    return wall, counts


def client(port: int, traffic: Traffic, pids: dict[str, int]) -> dict[str, Any]:
    """Run in a separate process: make the bodies, then send them; return CPU seconds of all processes over the timed part."""
    made = list(requests(traffic))
    first = int(len(made) * WARM)
    asyncio.run(send_all(port, made[:first], traffic.connections))
    before = {process_name: cpu_seconds(pid) for process_name, pid in pids.items()} | {"client": time.process_time()}
    wall, counts = asyncio.run(send_all(port, made[first:], traffic.connections))
    after = {process_name: cpu_seconds(pid) for process_name, pid in pids.items()} | {"client": time.process_time()}
    rows = (len(made) - first) * BATCH
    if counts["accepted"] != rows:
        raise SystemExit(f"not all rows were accepted: {counts}")
    return {
        "rows": rows,
        "wall": wall,
        "cpu": {process_name: (after[process_name] - before[process_name]) / rows * 1e6 for process_name in after},
    }


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def service(folder: Path) -> Iterator[tuple[int, str, dict[str, int]]]:
    """A service process: its port, its store's address, and the process ids."""
    environment = {**os.environ, "M3TR_DATA_DIR": str(folder), "M3TR_PORT": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.service.serve_fake"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = urlsplit(process.stdout.readline().split()[-1]).port
        assert port is not None
        server = int((folder / "store" / "server.lock").read_text())
        yield port, f"unix://{folder}/store/server.sock", {"service": process.pid, "store": server}
    finally:
        process.terminate()
        process.wait(30)


async def register(url: str, videos: int, seed: int = 3) -> None:
    """Register videos of ages between a minute and 30 days, directly in the store: PUT would take minutes."""
    settings = Settings(bundle=Path("unused"))
    metrics = new_metrics(settings)
    link = connect(url, metrics, deadline_s=60, connections=2)
    store = Store(link, settings, metrics)
    ages = np.exp(np.random.default_rng(seed).uniform(np.log(60), np.log(30 * 86400), videos))
    published = ((time.time() - ages) * 1e6).astype(int).tolist()
    for first in range(0, videos, 1000):
        shares = [
            CommitChunk(
                [name(i)], {"lengths": [0], "register": {"published_us": published[i], "metadata": "{}"}}, (b"",) * 5, 0
            )
            for i in range(first, min(first + 1000, videos))
        ]
        await store._applier.call(shares, {"strict": True})
        # Live: each has had a row, and remembers its id.
        rows = [
            InputRow(0, name(i), published[i] + 50_000_000, "events", (("view", 1),), 0, f"first-{i}")
            for i in range(first, min(first + 1000, videos))
        ]
        await store.ingest([RowBatch.of(rows)])
    await link.close()


def raw_rate(url: str, videos: int, exponent: float, seconds: float = 3) -> float:
    """HINCRBY commands per second of redis-py, 1,000 in a pipeline."""
    keys = [
        f"raw:{i}" for i in np.random.default_rng(1).choice(videos, 20_000, p=popularity(videos, exponent)).tolist()
    ]
    done, started = 0, time.perf_counter()
    with redis.Redis.from_url(url) as connection:
        while time.perf_counter() < started + seconds:
            pipe = connection.pipeline(transaction=False)
            for key in keys[done % 20_000 : done % 20_000 + BATCH]:
                pipe.hincrby(key, "12:view", 1)
            pipe.execute()
            done += BATCH
    return done / (time.perf_counter() - started)


def tool_rate(url: str, videos: int) -> float | None:
    """The same with redis-benchmark or valkey-benchmark, on one connection."""
    tool = shutil.which("valkey-benchmark") or shutil.which("redis-benchmark")
    if tool is None:
        return None
    options = ["-s", urlsplit(url).path, "-P", "1000", "-n", "1000000", "-c", "1", "-r", str(videos), "--csv"]
    shown = subprocess.run(
        [tool, *options, "HINCRBY", "raw:__rand_int__", "12:view", "1"], check=True, capture_output=True, text=True
    )
    return float(shown.stdout.splitlines()[-1].split(",")[1].strip('"'))


def measure(traffic: Traffic) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (port, url, pids):
        asyncio.run(register(url, traffic.videos))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made = pool.submit(client, port, traffic, pids).result()
        made["raw"] = raw_rate(url, traffic.videos, traffic.exponent)
        made["tool"] = tool_rate(url, traffic.videos)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, nargs="+", default=[5000], help="live videos; several are compared")
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument(
        "--spread",
        type=int,
        default=0,
        help="distinct videos of a batch, drawn evenly, in place of Zipf's law: with one "
        "connection a row meets the same coalescing however many videos there are",
    )
    parser.add_argument("--no-ids", action="store_true")
    parser.add_argument("--iso", action="store_true", help="times as text")
    parser.add_argument("--ndjson", action="store_true")
    args = parser.parse_args()
    costs = {}
    for videos in args.videos:
        traffic = Traffic(
            videos,
            args.batches,
            args.exponent,
            not args.no_ids,
            args.iso,
            args.ndjson,
            args.connections,
            args.spread,
            seed=videos,
        )
        made = measure(traffic)
        rate = made["rows"] / made["wall"]
        costs[videos] = 1e6 / rate
        cpu = ", ".join(f"{process_name} {us:.2f}" for process_name, us in made["cpu"].items())
        tool = f", {rate / made['tool']:.2f} of redis-benchmark's {made['tool']:,.0f}" if made["tool"] else ""
        print(
            f"{videos} videos: {rate:,.0f} rows/s, {1e6 / rate:.2f} us a row (CPU us: {cpu}); "
            f"{rate / made['raw']:.2f} of redis-py's raw HINCRBY {made['raw']:,.0f}/s{tool}",
            flush=True,
        )
    if len(costs) > 1:
        few, many = min(costs), max(costs)
        print(f"a row with {many} videos costs {costs[many] / costs[few]:.2f} times that with {few}")


if __name__ == "__main__":
    main()
