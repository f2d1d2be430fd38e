"""A GPU compared with the CPU: a training, and the forecasts of one bundle.

    python -m benchmarks.components.cuda [--videos 1000] [--batches 1,16,64,256]

Trains on a simulated data set on the CPU in float32, on the GPU in float32, and on the GPU in bfloat16 (the default there), and
prints seconds and the error on holdout videos. Then the last of these bundles forecasts on both: printed are the largest difference
of a quantile, and forecasts per second by batch, for videos whose tokens are all read and for videos whose state of an hour before
is cached. ``benchmarks.components.steps`` times the kernels alone. Needs a CUDA device and mamba-ssm.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from index_builder.bundles.forecast import histories
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.engagement.rows import cells_at
from model.forecast import Forecast, Request
from model.forecaster import Forecaster

HORIZONS = (HOUR_US, 24 * HOUR_US, 72 * HOUR_US)


def requests_of(forecaster: Forecaster, data: Path, age_h: float, videos: int) -> list[Request]:
    """Requests for the first videos at an age."""
    loaded = load_dataset(data)
    observed, types = Observed.of(loaded, forecaster.manifest.metric), forecaster.manifest.types
    v = np.arange(videos)
    now = loaded.published_us[v] + int(age_h * HOUR_US)
    cells = cells_at(observed.events, observed.counters, v, now, loaded.published_us[v], len(types))
    return [
        Request(loaded.videos[i], history, int(at), HORIZONS)
        for i, history, at in zip(v, histories(cells, types), now, strict=True)
    ]


def rates(forecaster: Forecaster, asked: list[Request], later: list[Request]) -> tuple[float, float]:
    """Forecasts per second without cached states, and for ``later`` with the states of ``asked``: medians of 5 repetitions."""
    fresh, kept = [], []
    for _ in range(6):
        start = time.perf_counter()
        forecaster.forecast(asked)
        fresh.append(time.perf_counter() - start)
        pool = forecaster.new_pool(2 * len(asked))
        forecaster.forecast(asked, pool=pool)
        start = time.perf_counter()
        forecaster.forecast(later, pool=pool)
        kept.append(time.perf_counter() - start)
    return len(asked) / statistics.median(fresh[1:]), len(asked) / statistics.median(kept[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--batches", default="1,16,64,256")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        simulate(data, videos=args.videos, seed=5)
        as_of_us = (load_dataset(data).last_us() or 0) - 14 * 24 * HOUR_US
        bundle = Path(folder)
        for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
            config, bundle = Path(folder) / f"{precision}.toml", Path(folder) / f"{device}-{precision}"
            config.write_text(f'precision = "{precision}"\nepochs = 2\nrefit = false\n', encoding="utf-8")
            start = time.perf_counter()
            train(data, as_of_us=as_of_us, metric="view", out=bundle, device=device, seed=1, config=config)
            seconds, judged = time.perf_counter() - start, load_bundle(bundle).manifest.evaluation
            pooled = judged["cells"]["pooled"]
            print(
                f"train {device} {precision}: {seconds:.0f} s, holdout: pinball {pooled['pinball']:.4f}, "
                f"nMSE {pooled['nmse']:.4f}, log-likelihood per token {judged['log_likelihood_per_token']:.4f}",
                flush=True,
            )
        answers: list[list[Forecast]] = []
        table: list[tuple[str, int, float, float]] = []
        batches = [int(batch) for batch in args.batches.split(",")]
        for device in ("cpu", "cuda"):
            forecaster = Forecaster.load(bundle, device=device)
            asked, later = (requests_of(forecaster, data, age_h, max(batches)) for age_h in (24, 25))
            answers.append(forecaster.forecast(asked, explain=False))
            table += [(device, batch, *rates(forecaster, asked[:batch], later[:batch])) for batch in batches]
            forecaster.close()
        ours, theirs = (np.array([answer.quantiles for answer in some]) for some in answers)
        print(f"largest relative difference of a quantile: {np.max(np.abs(ours - theirs) / (1 + ours)):.2e}")
        print(f"{'device':8}{'batch':>6}{'fresh/s':>10}{'kept/s':>10}")
        for device, batch, fresh, kept in table:
            print(f"{device:8}{batch:6}{fresh:10.0f}{kept:10.0f}")


if __name__ == "__main__":
    main()
