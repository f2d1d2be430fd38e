"""Memory of a live video in the event store: M3TR_TEST_DATA=FOLDER python -m benchmarks.service.memory.

Three kinds of videos: those of youtube_trending with their own metadata and snapshots of counters; the same videos as if a platform had
sent every view, like and comment as an event (the growth of each interval is spread over it, so nearly every bin is used); and an
extremely popular video, with large counts of four types and reach in every bin. Each figure is the sum of MEMORY USAGE (SAMPLES 0) of the
video's keys. Ids of events expire and are measured separately.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

import numpy as np
import redis

from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from model.engagement.bins import EDGES_US, N_BINS, SECOND_US, bin_index, bin_start_us
from service.settings import Settings
from service.store.functions import connect
from service.store.keys import video_prefix
from service.store.redis.embedded_server import EmbeddedServer
from service.store.rows.row import InputRow
from service.store.store import Store
from service.videos.metadata import VideoBody
from service.wiring import new_metrics

ROOT = Path(__file__).parents[2]

KINDS = ("view", "like", "comment", "share")
BAR_MEDIAN, BAR_ANY = 16_384, 81_920
MONTH_BINS = int(bin_index(30 * 86_400 * SECOND_US)) + 1


class MeasuredStore:
    """A store on a new server."""

    def __init__(self, url: str) -> None:
        settings = Settings(bundle=Path("unused"))
        self.link = connect(url, new_metrics(settings), deadline_s=60, connections=4)
        self.store = Store(self.link, settings, new_metrics(settings))
        self.redis = redis.Redis.from_url(url)

    async def put(self, video_id: str, published_us: int, rows: list[InputRow], **metadata: object) -> None:
        body = VideoBody.model_validate({"published_at": published_us / 1e6, **metadata})
        await self.store.register(video_id, body.registration())
        for first in range(0, len(rows), 5000):
            outcome = (await self.store.apply({video_id: rows[first : first + 5000]}))[video_id].outcome
            assert outcome.accepted == len(rows[first : first + 5000]), outcome

    def size(self, video_id: str, *, ids: bool = False) -> int:
        """Bytes of the video's keys: without the ids, or of the ids only."""
        prefix = video_prefix(video_id).encode()
        found = [key for key in self.redis.scan_iter(prefix + b"*", count=10_000) if (b"}:ids:" in key) == ids]
        return sum(self.redis.memory_usage(key, samples=0) or 0 for key in found)


def snapshots(data: DataSet, v: int) -> dict[str, list[tuple[int, int]]]:
    """(time, value) pairs of each counter of a video."""
    rows = data.counters
    assert rows is not None
    part = slice(int(rows.offsets[v]), int(rows.offsets[v + 1]))
    found: dict[str, list[tuple[int, int]]] = {}
    for kind, time_us, value in zip(rows.type[part], rows.time_us[part], rows.value[part], strict=True):
        found.setdefault(data.types[int(kind)], []).append((int(time_us), int(value)))
    return found


def as_counters(video_id: str, seen: dict[str, list[tuple[int, int]]]) -> list[InputRow]:
    return [InputRow(0, video_id, t, "counters", ((kind, n),)) for kind, points in seen.items() for t, n in points]


def as_events(
    video_id: str, published_us: int, seen: dict[str, list[tuple[int, int]]], chance: np.random.Generator
) -> list[InputRow]:
    rows = []
    for kind, points in seen.items():
        ages = np.array([0, *(t - published_us for t, _ in points)])
        totals = np.maximum.accumulate([0, *(n for _, n in points)])
        edges = EDGES_US[: int(bin_index(int(ages[-1]))) + 2]
        expected = np.diff(np.interp(edges, ages, totals))
        for start_us, count in zip(edges, chance.poisson(expected), strict=False):
            if count:
                rows.append(InputRow(0, video_id, published_us + int(start_us), "events", ((kind, int(count)),)))
    return rows


def popular(video_id: str, published_us: int, bins: int) -> list[InputRow]:
    return [
        InputRow(
            0,
            video_id,
            published_us + int(bin_start_us(b)),
            "events",
            ((kind, 10**7 + b),),
            10**11 if kind == "view" else 0,
        )
        for b in range(bins)
        for kind in KINDS
    ]


def report(name: str, sizes: list[int], bar: int) -> None:
    middle, high = np.median(sizes), np.percentile(sizes, 99)
    verdict = "within" if middle <= bar else "OVER"
    print(f"{name:44s} median {middle:8,.0f} B, p99 {high:8,.0f} B   ({verdict} {bar:,})", flush=True)


async def measure(url: str, data: DataSet, sample: int) -> None:
    measured, chance = MeasuredStore(url), np.random.default_rng(1)
    chosen = chance.choice(len(data.videos), sample, replace=False).tolist()
    both: dict[str, list[int]] = {"counters": [], "events": []}
    for v in chosen:
        video, seen = data.videos[v], snapshots(data, v)
        metadata = video.metadata()
        for mode, sizes in both.items():
            video_id, published_us = f"{video.video_id}", video.published_us
            rows = (
                as_counters(video_id, seen) if mode == "counters" else as_events(video_id, published_us, seen, chance)
            )
            await measured.put(video_id, published_us, rows, **metadata)
            sizes.append(measured.size(video_id))
            await measured.store.forget(video_id)
    report("youtube_trending, snapshots", both["counters"], BAR_MEDIAN)
    report("youtube_trending, every engagement an event", both["events"], BAR_MEDIAN)
    published_us = 1_700_000_000 * SECOND_US
    for name, bins in (("30 days", MONTH_BINS), ("14 years", N_BINS)):
        await measured.put("popular0000", published_us, popular("popular0000", published_us, bins), title="t" * 100)
        report(f"any popularity, {name} ({bins} bins)", [measured.size("popular0000")], BAR_ANY)
        await measured.store.forget("popular0000")
    for n in (100, 100_000):
        rows = [InputRow(0, "ids", published_us + i, "events", (("view", 1),), 0, f"{i:036d}") for i in range(n)]
        await measured.put("ids", published_us, rows)
        print(f"ids of {n:,} events of one video: {measured.size('ids', ids=True) / n:.1f} B an id, for 2 to 4 days")
        await measured.store.forget("ids")
    await measured.link.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=300, help="videos of the data set")
    args = parser.parse_args()
    data = load_dataset(Path(os.environ.get("M3TR_TEST_DATA", ROOT.parent / "shared" / "data")) / "youtube_trending")
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder), appendfsync="everysec")
        server.start()
        try:
            asyncio.run(measure(server.url, data, args.sample))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
