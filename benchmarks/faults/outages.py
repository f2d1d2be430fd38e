"""Availability and latency while a part is dead or hangs, and the time to recovery.

    python -m benchmarks.faults.outages [--bundle DIR] [--seconds 8] [--rate 60]

Forecasts of known videos and small batches of events arrive at a fixed rate. The bank is a stand-in for a Qdrant server, which finds
nothing or hangs. The event store is a real server, which is stopped or paused by SIGSTOP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.service.load import EVENTS, FORECAST, Load, Plan, bundle_copy, client, known_videos, service
from model.bundle import load_bundle
from service.store.redis.embedded_server import EmbeddedServer

DEADLINE_MS = 500
KNOWN = 200
"""Videos that the service reads from the store before the store is gone."""


class StandIn:
    """Implements as much of Qdrant's REST API as an empty bank needs, in a thread; while ``hung`` it does not respond."""

    def __init__(self, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        self._prefix = loaded.manifest.version[:16]
        self._dims = dict(zip(("content", "trajectory"), loaded.dims, strict=True))
        self.hung = False
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (
                        int(line[15:])
                        for line in head.decode().lower().split("\r\n")
                        if line.startswith("content-length:")
                    ),
                    0,
                )
                request: Any = json.loads(await reader.readexactly(length)) if length else None
                while self.hung:
                    await asyncio.sleep(0.05)
                body = json.dumps(
                    {"result": self._answer(head.split()[1].decode(), request), "status": "ok", "time": 0}
                )
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(body), body.encode())
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, path: str, request: Any) -> Any:
        path = path.partition("?")[0]
        if path == "/aliases":
            return {
                "aliases": [
                    {"alias_name": f"{self._prefix}_{kind}", "collection_name": f"{kind}-1"} for kind in self._dims
                ]
            }
        if path.endswith("/points/count"):
            return {"count": 0}
        if path.endswith("/points/query/batch"):
            return [{"points": []} for _ in request["searches"]]
        if path.endswith("/points/scroll"):
            return {"points": [], "next_page_offset": None}
        if path.endswith("/points"):
            return []
        kind = path.rpartition("/")[2].partition("-")[0]
        params = {"vectors": {kind: {"size": self._dims[kind], "distance": "Dot"}}}
        optimizer = {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        }
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "payload_schema": {},
            "config": {"params": params, "hnsw_config": hnsw, "optimizer_config": optimizer},
        }


def line(name: str, load: Load) -> str:
    good = load.share(200)
    refused = load.latencies[load.statuses == 503]
    return (
        f"{name:>22} {good:8.3%} {load.ms(50, FORECAST):7.1f} {load.ms(99, FORECAST):7.1f} {load.ms(99, EVENTS):7.1f}"
        f" {np.percentile(refused, 99) * 1000 if len(refused) else 0:10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=60.0)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {vars(args)}; bank deadline {DEADLINE_MS} ms")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_copy(args.bundle, Path(folder))
        bank = StandIn(bundle)
        store = EmbeddedServer(Path(folder) / "store", appendfsync="everysec")
        store.start()
        environment = {
            "REDIS_URL": store.url,
            "QDRANT_URL": f"http://127.0.0.1:{bank.port}",
            "M3TR_BANK_DEADLINE_MS": str(DEADLINE_MS),
            "M3TR_FORECAST_REUSE_MS": "0",
        }
        try:
            with service(bundle, Path(folder) / "data", **environment) as (url, _), client() as submit:
                measure(args, bank, store, bundle, url, submit)
        finally:
            store.stop()


def measure(
    args: argparse.Namespace, bank: StandIn, store: EmbeddedServer, bundle: Path, url: str, submit: Any
) -> None:
    # Not warm: the neighbours of warm videos are cached, so the bank would hardly be asked.
    types = known_videos(url, bundle, args.videos, warm=False)

    def run(events_share: float = 0.2, videos: int = args.videos) -> Load:
        plan = Plan(url, videos, args.seconds, 256, args.rate, events_share, types=types)
        load: Load = submit(plan).result()
        return load

    def degraded() -> int:
        found = re.search(r'^m3tr_forecasts_degraded_total{part="bank"} (\S+)', httpx.get(f"{url}/metrics").text, re.M)
        return int(float(found[1])) if found else 0

    def recovery(path: str, good: Any) -> float:
        started = time.perf_counter()
        while time.perf_counter() - started < 60:
            response = httpx.get(url + path)
            if response.status_code == 200 and good(response.json()):
                return time.perf_counter() - started
            time.sleep(0.02)
        raise SystemExit("no recovery within 60 s")

    print(f"{'':>22} {'200s':>8} {'p50':>7} {'p99':>7} {'rows p99':>7} {'503 p99 ms':>10}")
    run()
    healthy = run()
    print(line("healthy", healthy))
    for fault in ("Qdrant hung", "Qdrant dead"):
        if fault == "Qdrant hung":
            bank.hung = True
        else:
            bank._loop.call_soon_threadsafe(bank._server.close)
            bank.hung = True
        before = degraded()
        load = run()
        print(line(fault, load))
        print(f"{'':>22} {degraded() - before} forecasts without neighbours, including those for the lists")
        bound = 1.2 * healthy.ms(99, FORECAST) + DEADLINE_MS
        print(
            f"{'':>22} available {load.share(200):.3%} (at least 99.9 %), p99 {load.ms(99, FORECAST) / bound:.2f}"
            " of 1.2 times healthy plus the deadline"
        )
        if fault == "Qdrant hung":
            bank.hung = False
            seconds = recovery("/videos/video-1/forecast", lambda forecast: "bank" not in forecast["degraded"])
            print(f"{'':>22} neighbours again {seconds:.2f} s after the server answers")
    for i in range(KNOWN):
        httpx.get(f"{url}/videos/video-{i}/forecast").raise_for_status()
    for fault in ("Redis hung", "Redis dead"):
        assert store._process is not None
        if fault == "Redis hung":
            store._process.send_signal(signal.SIGSTOP)
        else:
            store.stop()
        time.sleep(0.1)
        reads, writes = run(0.0, KNOWN), run(1.0, KNOWN)
        print(line(f"{fault}, forecasts", reads))
        print(line(f"{fault}, rows", writes))
        if fault == "Redis hung":
            store._process.send_signal(signal.SIGCONT)
        else:
            store.start()
        seconds = recovery("/videos/video-1/forecast", lambda forecast: forecast["stale"] is False)
        print(f"{'':>22} current again {seconds:.2f} s after the server answers")


if __name__ == "__main__":
    main()
