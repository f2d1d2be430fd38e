"""A model is switched back and forth under load: failed requests, and p99 during the switches compared with the steady state.

    python -m benchmarks.service.switch [--bundles DIR] [--switches 6] [--kept 0]

Starts the real service on one of two bundles (``--bundles``: a folder with at least two; otherwise two small ones are trained on simulated
videos) and loads it with a closed loop of forecasts of known videos and small batches of events. A window opens with the request to switch
and closes one second after its response; every request that was running during the window counts. At the end the same load runs with and
without a shadow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.service.load import EVENTS, FORECAST, Load, Plan, client, known_videos, service
from index_builder.datasets.load import load_dataset
from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.engagement.bins import HOUR_US

AFTER_S = 1.0


def two_bundles(given: Path | None, folder: Path) -> list[Path]:
    """Two copies of bundles in ``folder``, because only one process can open an embedded bank."""
    folder.mkdir()
    if given is not None:
        found = sorted(path.parent for path in given.glob("*/manifest.json"))
        versions = {json.loads((path / "manifest.json").read_bytes())["version"]: path for path in found}
        if len(versions) < 2:
            raise SystemExit(f"{given}: two different bundles are needed")
        return [Path(shutil.copytree(path, folder / path.name)) for path in list(versions.values())[:2]]
    data = folder.parent / "simulated"
    config = folder.parent / "config.toml"
    config.write_text("epochs = 1\nfusion_epochs = 1\nd_model = 16\ncuts_per_video = 4\nbank_videos = 150\n", "utf-8")
    simulate(data, videos=150, seed=11, days=30)
    as_of_us = (load_dataset(data).last_us() or 0) - 14 * 24 * HOUR_US
    for seed in (1, 2):
        out = folder / f"seed-{seed}"
        train(data, as_of_us=as_of_us, metric="view", out=out, device="cpu", seed=seed, config=config)
    return [folder / "seed-1", folder / "seed-2"]


def running_between(load: Load, began: float, ended: float) -> np.ndarray:
    """Requests that were running between two times (s since the load began), (n,) bool."""
    return (load.starts < ended) & (load.starts + load.latencies > began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--switches", type=int, default=6)
    parser.add_argument("--steady", type=float, default=4.0, help="seconds of load before each switch")
    parser.add_argument("--window", type=float, default=8.0, help="seconds of load after each order to switch")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--events-share", type=float, default=0.2)
    parser.add_argument(
        "--kept", type=int, default=0, help="earlier models kept; 0: every switch loads one and closes one"
    )
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {vars(args)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundles = two_bundles(args.bundles, folder / "bundles")
        environment = {"M3TR_BUNDLES": str(folder / "bundles"), "M3TR_MODELS_KEPT": str(args.kept)}
        with (
            service(bundles[0], folder / "data", **environment) as (url, process),
            client() as submit,
            httpx.Client(base_url=url, timeout=120) as admin,
        ):
            types = known_videos(url, bundles[0], args.videos)

            def plan(seconds: float, seed: int) -> Plan:
                mix = {"events_share": args.events_share, "types": types, "seed": seed}
                return Plan(url, args.videos, seconds, args.connections, **mix)

            submit(plan(3.0, 0)).result()
            rounds = []
            for i in range(args.switches):
                began = time.perf_counter()
                running = submit(plan(args.steady + args.window, 1 + i))
                time.sleep(args.steady)
                ordered = time.perf_counter() - began
                response = admin.post(f"/models/{bundles[(i + 1) % 2].name}/activate")
                response.raise_for_status()
                answered = time.perf_counter() - began
                rounds.append((running.result(), ordered, answered + AFTER_S))
                print(line(*rounds[-1], response.json()))
            report(rounds)
            alone = submit(plan(args.window, 100)).result()
            admin.post(f"/models/{bundles[(args.switches + 1) % 2].name}/shadow").raise_for_status()
            beside = submit(plan(args.window, 101)).result()
            made = [row for row in admin.get("/metrics").text.splitlines() if row.startswith("m3tr_shadow_forecasts")]
            print(
                f"shadow: p99 {beside.ms(99):.1f} ms with one, {alone.ms(99):.1f} without ({beside.ms(99) / alone.ms(99):.2f});"
                f" {beside.goodput / alone.goodput:.2f} of the requests; {', '.join(made)}"
            )
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            print(next(row for row in status if row.startswith("VmRSS")))


def line(load: Load, began: float, ended: float, activation: dict[str, object]) -> str:
    where = running_between(load, began, ended) & (load.statuses == 200)
    latencies = load.latencies[where] * 1000
    cut = " (the load ended before it)" if ended > load.seconds else ""
    return (
        f"switch: {activation['seconds']} s, {activation['warmed']} videos warmed, {len(latencies)} requests in its window,"
        f" p99 {np.percentile(latencies, 99):.1f} ms, longest {latencies.max():.0f} ms{cut}"
    )


def report(rounds: list[tuple[Load, float, float]]) -> None:
    inside = np.concatenate([running_between(load, began, ended) for load, began, ended in rounds])
    good = np.concatenate([load.statuses == 200 for load, _, _ in rounds])
    kinds = np.concatenate([load.kinds for load, _, _ in rounds])
    latencies = np.concatenate([load.latencies for load, _, _ in rounds]) * 1000
    for kind in (FORECAST, EVENTS):
        for name, where in (("steady", ~inside), ("switching", inside)):
            chosen = latencies[where & good & (kinds == kind)]
            p50, p99 = np.percentile(chosen, [50, 99])
            print(
                f"{kind:>9} {name:>10}: {len(chosen):6} requests, p50 {p50:6.1f}, p99 {p99:6.1f}, longest {chosen.max():6.0f} ms"
            )
    steady, during = (np.percentile(latencies[where & good], 99) for where in (~inside, inside))
    print(f"failed: {int((~good).sum())} of {len(good)} (none allowed)")
    print(f"p99 {during:.1f} ms while switching, {steady:.1f} ms steady: {during / steady:.2f} (at most 2)")


if __name__ == "__main__":
    main()
