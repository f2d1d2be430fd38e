"""Forecasts per second compared with a trivial FastAPI route, with a bank of 100,000 videos.

    python -m benchmarks.service.read --bundle BUNDLE [--bank-videos 100000] [--videos 200] [--events 40] [--connections 16] [--rounds 3]

Starts the real service (embedded store, the bundle's model, a bank of clustered vectors) and, in another process on the same uvicorn, an
application with one trivial POST route. This process loads each of them alone, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.service.client import ClosedLoopResult, closed_loop, request
from model.bank import BankVideo, Curve, EmbeddedBank
from model.bundle import BANK, load_bundle
from model.growth.curve_kernels import age_bucket

HOUR_US = 3_600_000_000
TRIVIAL = """
import uvicorn
from fastapi import FastAPI
app = FastAPI()

@app.post("/trivial")
async def trivial(body: dict) -> dict:
    return {"ok": True}

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("listens on http://127.0.0.1:%d" % self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, server_header=False)).run()
"""


def fill_bank(path: Path, videos: int, content_dim: int, d_model: int, now_us: int) -> None:
    """Videos of the last year, with content and a trajectory at each of 6 ages, observed long ago."""
    rng = np.random.default_rng(0)
    mixes = [rng.normal(size=(16, dim)) for dim in (content_dim, d_model)]

    def vectors(mix: np.ndarray, n: int) -> np.ndarray:
        found: np.ndarray = rng.normal(size=(n, 16)) @ mix + 0.3 * rng.normal(size=(n, mix.shape[1]))
        return found.astype(np.float32)

    ages = (np.arange(1, 21) ** 2) * HOUR_US
    at = ages[[0, 1, 3, 5, 9, 14]]
    with EmbeddedBank.build(path, content_dim, d_model) as bank:
        for start in range(0, videos, 2000):
            n = min(2000, videos - start)
            content, trajectory = vectors(mixes[0], n), vectors(mixes[1], n * len(at)).reshape(n, len(at), d_model)
            batch = []
            for i in range(n):
                published = now_us - int(rng.integers(1000, 9000)) * HOUR_US
                trajectories = {
                    int(age_bucket(np.array([age]))[0]): (trajectory[i, j], published + int(age))
                    for j, age in enumerate(at)
                }
                curve = Curve(ages, np.cumsum(rng.integers(0, 10_000, 20)))
                batch.append(
                    BankVideo(
                        f"old-{start + i}",
                        published,
                        "music",
                        f"creator-{(start + i) // 5}",
                        content[i],
                        trajectories,
                        curve,
                        published + HOUR_US,
                    )
                )
            bank.upsert(batch)
        bank.optimize()


@contextmanager
def serving(command: list[str]) -> Iterator[int]:
    """A server process; yields the port that it prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listens on" not in line:
            raise RuntimeError(f"{command[:3]} did not start: {line!r}")
        yield int(line.strip().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


def post(port: int, path: str, body: object, method: str = "POST") -> None:
    """Send one request by the standard library."""
    head, _, content = request(method, path, body).partition(b"\r\n\r\n")
    del head
    call = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", content, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(call) as answer:
        answer.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder that keeps the filled bundle for the next run")
    for name, default in (
        ("bank-videos", 100_000),
        ("videos", 200),
        ("events", 40),
        ("connections", 16),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        bundle = work / "bundle"
        if not bundle.exists():
            shutil.copytree(args.bundle, bundle, ignore=shutil.ignore_patterns(BANK))
            loaded = load_bundle(bundle)
            print(f"filling a bank of {args.bank_videos:,} videos")
            dims = loaded.dims
            fill_bank(bundle / BANK, args.bank_videos, *dims, time.time_ns() // 1000)
        run(args, bundle, Path(temporary) / "data")


def run(args: argparse.Namespace, bundle: Path, data: Path) -> None:
    m3tr = [sys.executable, "-m", "service.cli", "--bundle", str(bundle), "--port", "0", "--data-dir", str(data)]
    with serving(m3tr) as port, serving([sys.executable, "-c", TRIVIAL]) as plain:
        now_s, rng = time.time(), np.random.default_rng(1)
        kinds = load_bundle(bundle).manifest.types
        gets, posts = [], []
        for i in range(args.videos):
            age_s = float(rng.uniform(2, 100)) * 3600
            metadata = {"published_at": now_s - age_s, "title": f"video number {i}", "creator_id": f"creator-{i}"}
            post(port, f"/videos/v{i}", metadata, "PUT")
            rows = [
                {
                    "video_id": f"v{i}",
                    "time": now_s - age_s * float(rng.uniform(0, 1)),
                    "type": kinds[-1],
                    "id": f"{i}-{e}",
                }
                for e in range(args.events)
            ]
            post(port, "/events", rows)
            gets.append(request("GET", f"/videos/v{i}/forecast?horizons_s=3600,86400,259200"))
            posts.append(
                request("POST", "/predict", {"video": {"video_id": f"v{i}"}, "horizons_s": [3600, 86400, 259200]})
            )
        arms = {
            "trivial POST": (plain, [request("POST", "/trivial", {"video": {"video_id": "v"}, "horizons_s": [3600]})]),
            "GET forecast": (port, gets),
            "POST /predict": (port, posts),
        }
        for where, requests in arms.values():
            asyncio.run(closed_loop(where, requests, connections=args.connections, seconds=3))
        results: dict[str, list[ClosedLoopResult]] = {name: [] for name in arms}
        for _ in range(args.rounds):
            for name, (where, requests) in arms.items():
                results[name].append(
                    asyncio.run(closed_loop(where, requests, connections=args.connections, seconds=args.seconds))
                )
        base = results["trivial POST"]
        print(f"{args.connections} connections, medians of {args.rounds} rounds of {args.seconds:g} s")
        for name, loads in results.items():
            rate = statistics.median(load.rate for load in loads)
            p50, p99 = (statistics.median(load.ms(p) for load in loads) for p in (50, 99))
            ratio = statistics.median(load.rate / b.rate for load, b in zip(loads, base, strict=True))
            slower = statistics.median(load.ms(99) / b.ms(99) for load, b in zip(loads, base, strict=True))
            bad = sum(len(load.seconds) - load.succeeded for load in loads)
            print(
                f"{name:14} {rate:8,.0f}/s ({ratio:.2f} of trivial)  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms "
                f"({slower:.2f} of trivial)  {bad} not 2xx"
            )


if __name__ == "__main__":
    main()
