"""A restart with many videos in the store, and the service's memory of a live video.

    python -m benchmarks.service.restart --bundle BUNDLE [--videos 100000] [--live 4000]

Videos have five snapshots of views and likes (the median of youtube_trending), a title and a creator. They are written to the embedded
store, which is then stopped, and the service starts on its files. Times count from the start of the process; "first answer" is a forecast
requested when the service reports that it is ready. Memory is the growth of the process while ``--live`` videos are forecast for the
first time, divided by their number, after as many others have warmed it up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from benchmarks.service.client import closed_loop, request
from model.engagement.bins import HOUR_US
from service.settings import Settings
from service.store.functions import connect
from service.store.redis.embedded_server import EmbeddedServer
from service.store.rows.row import InputRow
from service.store.store import Registration, Store
from service.wiring import new_metrics

ROOT = Path(__file__).parents[2]

SNAPSHOTS = 5


async def fill(url: str, videos: int) -> None:
    """Register the videos with their rows, 64 at a time."""
    settings = Settings(bundle=Path("unused"))
    metrics = new_metrics(settings)
    link = connect(url, metrics, deadline_s=30, connections=16)
    store = Store(link, settings, metrics)
    rng = np.random.default_rng(0)
    now_us = time.time_ns() // 1000

    async def one(i: int) -> None:
        age_us = int(rng.uniform(30, 200) * HOUR_US)
        times = np.sort(rng.uniform(0, 1, SNAPSHOTS) * age_us).astype(np.int64) + now_us - age_us
        views = np.cumsum(rng.integers(1, 50_000, SNAPSHOTS))
        rows = [
            InputRow(n, f"v{i}", int(t), "counters", (("view", int(v)), ("like", int(v) // 20)))
            for n, (t, v) in enumerate(zip(times, views, strict=True))
        ]
        about = f'{{"creator_id":"creator-{i // 5}","title":"video number {i} of many"}}'
        await store.register(f"v{i}", Registration(now_us - age_us, about), rows)

    for start in range(0, videos, 64):
        await asyncio.gather(*(one(i) for i in range(start, min(start + 64, videos))))
    await link.close()


def rss_kb(pid: int) -> int:
    """Resident memory of a process, kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--live", type=int, default=4_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        server = EmbeddedServer(data, appendfsync="everysec")
        server.start()
        started = time.perf_counter()
        asyncio.run(fill(server.url, args.videos))
        print(f"{args.videos:,} videos stored in {time.perf_counter() - started:.0f} s")
        server.stop()
        restart(args, data)


def restart(args: argparse.Namespace, data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "--bundle",
        str(args.bundle),
        "--port",
        "0",
        "--data-dir",
        str(data),
    ]
    # Cache all of them and do no other work: this measures the memory of one more live video.
    environment = {
        **os.environ,
        "M3TR_CACHE_VIDEOS": str(3 * args.live),
        "M3TR_BANK_AFTER_S": "0",
        "M3TR_RANKING_FORECASTS": "0",
    }
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").read()
                    break
                except urllib.error.HTTPError:
                    time.sleep(0.01)
            ready = time.perf_counter()
            urllib.request.urlopen(f"http://127.0.0.1:{port}/videos/v{args.videos // 2}/forecast").read()
            print(
                f"ready after {ready - started:.2f} s; first answer {(time.perf_counter() - ready) * 1000:.0f} ms later"
            )

            def forecast(first: int, n: int) -> None:
                gets = [request("GET", f"/videos/v{i}/forecast") for i in range(first, first + n)]
                asyncio.run(closed_loop(port, gets, connections=8))

            forecast(0, args.live)
            before = rss_kb(process.pid)
            forecast(args.live, args.live)
            grown = rss_kb(process.pid) - before
            print(f"memory of {args.live:,} more live videos: {grown / 1024:.0f} MB, {grown / args.live:.1f} KB each")
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
