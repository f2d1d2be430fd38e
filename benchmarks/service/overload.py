"""Goodput and latency at and beyond saturation: forecasts of known videos mixed with small batches of events.

    python -m benchmarks.service.overload [--bundle DIR] [--seconds 5] [--rounds 3]

In each round a closed loop of 24 connections finds the saturating rate, and an open loop offers 0.8, 1 and 3 times that rate. Goodput is
responses with status 200 per second; ratios are medians over the rounds. Without ``--bundle`` a small bundle is trained on simulated
videos.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.service.load import (
    EVENTS,
    FORECAST,
    RESET,
    UNSENT,
    Load,
    Plan,
    bundle_copy,
    client,
    known_videos,
    service,
)

FACTORS = (0.8, 1.0, 3.0)


def line(name: str, load: Load) -> str:
    return (
        f"{name:>12} {len(load.statuses) / load.seconds:8.0f} {load.goodput:8.0f} {load.ms(50):7.1f} {load.ms(99):7.1f}"
        f" {load.ms(99, FORECAST):9.1f} {load.ms(99, EVENTS):7.1f} {load.share(429, 503):7.1%}"
        f" {load.share(RESET, UNSENT, 500):6.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--events-share", type=float, default=0.2)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {vars(args)}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_copy(args.bundle, Path(folder))
        with service(bundle, Path(folder) / "data") as (url, _), client() as submit:
            types = known_videos(url, bundle, args.videos)

            def run(connections: int, rate: float | None, seed: int) -> Load:
                mix = {"events_share": args.events_share, "types": types, "seed": seed}
                return submit(Plan(url, args.videos, args.seconds, connections, rate, **mix)).result()

            run(16, None, 0)
            print(
                f"{'':>12} {'offered':>8} {'goodput':>8} {'p50 ms':>7} {'p99 ms':>7} {'forecasts':>9} {'events':>7}"
                f" {'shed':>7} {'broken':>6}"
            )
            goodput, latency = [], []
            for round_ in range(args.rounds):
                closed = run(24, None, 100 * round_)
                print(line("closed loop", closed))
                loads = {factor: run(args.connections, factor * closed.goodput, 100 * round_) for factor in FACTORS}
                for factor, load in loads.items():
                    print(line(f"open {factor:g}x", load))
                peak = max(closed.goodput, *(load.goodput for load in loads.values()))
                goodput.append(loads[3.0].goodput / peak)
                latency.append(loads[3.0].ms(99) / loads[0.8].ms(99))
    print(f"goodput at 3x: {np.median(goodput):.2f} of its peak (at least 0.9); by round {np.round(goodput, 2)}")
    print(
        f"p99 of accepted at 3x: {np.median(latency):.2f} of that at 0.8x (at most 2); by round {np.round(latency, 2)}"
    )


if __name__ == "__main__":
    main()
