"""Queries per second and recall of the embedded bank, exact search and HNSW.

    python -m benchmarks.components.bank [--videos 20000] [--buckets 8] [--per-video 4] [--queries 512] [--batch 64] [--limit 16]

Vectors are clustered (16 latent dimensions plus noise), curves have 20 points. "live" queries are at a time when everything is
usable, "past" queries are all at the same time, when half of it is, and "mixed" queries are each at another time. "cold" starts with
no decoded row in memory. HNSW is forced by lowering the limit of exact search to 1,000 vectors.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bank import BankQuery, BankVideo, Curve, EmbeddedBank, embedded_engine

CONTENT_DIM, TRAJECTORY_DIM = 64, 48
START_US, HOUR_US = 1_760_000_000_000_000, 3_600_000_000


def vectors(rng: np.random.Generator, mix: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    latent = rng.normal(size=(n, len(mix)))
    return (latent @ mix + 0.3 * rng.normal(size=(n, mix.shape[1]))).astype(np.float32)


def make(args: argparse.Namespace, rng: np.random.Generator, mixes: list[NDArray[np.float64]]) -> list[BankVideo]:
    content = vectors(rng, mixes[0], args.videos)
    trajectory = vectors(rng, mixes[1], args.videos * args.per_video)
    ages = (np.arange(1, 21) ** 2) * HOUR_US
    videos = []
    for i in range(args.videos):
        published = START_US + i * HOUR_US // 10
        buckets = rng.choice(args.buckets, args.per_video, replace=False)
        videos.append(
            BankVideo(
                f"video-{i}",
                published,
                "music",
                f"creator-{i // 5}",
                content[i],
                {
                    int(b): (trajectory[i * args.per_video + j], published + int(b + 1) * 6 * HOUR_US)
                    for j, b in enumerate(buckets)
                },
                Curve(ages, np.cumsum(rng.integers(0, 10_000, 20))),
                published + 6 * HOUR_US,
            )
        )
    return videos


def make_queries(
    args: argparse.Namespace, rng: np.random.Generator, mixes: list[NDArray[np.float64]]
) -> dict[str, list[BankQuery]]:
    content, trajectory = vectors(rng, mixes[0], args.queries), vectors(rng, mixes[1], args.queries)
    end = START_US + args.videos * HOUR_US // 10
    nows = {
        "live": [end + 1000 * HOUR_US] * args.queries,
        "past": [(START_US + end) // 2] * args.queries,
        "mixed": rng.integers(START_US + (end - START_US) // 4, end, args.queries).tolist(),
    }
    return {
        kind: [
            BankQuery(content[i], trajectory[i], i % args.buckets, now, f"video-{i}", args.limit)
            for i, now in enumerate(times)
        ]
        for kind, times in nows.items()
    }


def timed(bank: EmbeddedBank, queries: list[BankQuery], batch: int) -> tuple[float, list[set[str]]]:
    found: list[set[str]] = []
    start = time.perf_counter()
    for i in range(0, len(queries), batch):
        found += [
            {candidate.video_id for candidate in candidates} for candidates in bank.search(queries[i : i + batch])
        ]
    return len(queries) / (time.perf_counter() - start), found


def size(folder: Path) -> str:
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    on_disk, apparent = sum(s.st_blocks for s in stats) * 512, sum(s.st_size for s in stats)
    return f"{on_disk / 1e6:.0f} MB on disk, {apparent / 1e6:.0f} MB apparent (sparse files)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"videos": 20_000, "buckets": 8, "per-video": 4, "queries": 512, "batch": 64, "limit": 16, "seed": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hnsw", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    mixes = [rng.normal(size=(16, dim)) for dim in (CONTENT_DIM, TRAJECTORY_DIM)]
    videos, queries_by_kind = make(args, rng, mixes), make_queries(args, rng, mixes)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {vars(args)}")
    folder = Path(tempfile.mkdtemp()) / "bank"
    try:
        exact = run("exact", 10**9, folder, args, videos, queries_by_kind, {})
        if args.hnsw:
            run(f"hnsw ef {embedded_engine.HNSW_EF}", 1_000, folder, args, videos, queries_by_kind, exact)
    finally:
        shutil.rmtree(folder.parent)


def run(
    label: str,
    exact_up_to: int,
    folder: Path,
    args: argparse.Namespace,
    videos: list[BankVideo],
    queries_by_kind: dict[str, list[BankQuery]],
    truth: dict[str, list[set[str]]],
) -> dict[str, list[set[str]]]:
    embedded_engine.EXACT_UP_TO = exact_up_to  # type: ignore[misc]
    start = time.perf_counter()
    with EmbeddedBank.build(folder, CONTENT_DIM, TRAJECTORY_DIM) as bank:
        for i in range(0, len(videos), 1000):
            bank.upsert(videos[i : i + 1000])
        filled = time.perf_counter()
        bank.optimize()
        optimized = time.perf_counter()
    print(f"{label}: fill {filled - start:.1f} s, optimize {optimized - filled:.1f} s, {size(folder)}")
    answers = {}
    opening = time.perf_counter()
    bank = EmbeddedBank.open(folder, CONTENT_DIM, TRAJECTORY_DIM)
    print(f"  open {time.perf_counter() - opening:.2f} s, {bank.counts()}")
    for kind, queries in queries_by_kind.items():
        cold, answers[kind] = timed(bank, queries, args.batch)
        rate, _ = timed(bank, queries, args.batch)
        single, _ = timed(bank, queries[:128], 1)
        recall = ""
        if truth:
            pairs = zip(answers[kind], truth[kind], strict=True)
            recall = f", recall {np.mean([len(a & b) / max(1, len(b)) for a, b in pairs]):.4f}"
        print(f"  {kind:5} {rate:6.0f} queries/s (cold {cold:.0f}, one by one {single:.0f}){recall}")
    creators = [f"creator-{i}" for i in range(256)]
    start = time.perf_counter()
    for creator in creators:
        bank.creator([creator])
    print(f"  creator {256 / (time.perf_counter() - start):.0f} calls/s")
    bank.close()
    return answers


if __name__ == "__main__":
    main()
