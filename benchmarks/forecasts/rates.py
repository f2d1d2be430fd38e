"""Expected engagement (``intensity_per_hour``) compared with real engagement, by type and age, on videos published after the training.

    python -m benchmarks.forecasts.rates BUNDLE DATA --published-from 2026-06-01 [--published-before 2026-07-01] [--videos 2000] [--drawn]

Events: the rate at nine ages compared with the next hour. Most of these ages are whole days, when viewers who saw the video at its
publication are awake again; ``--drawn`` draws as many ages evenly in log age instead. Counters: rates at eight times spread over the
gap to the next reading, from what was known at its start, compared with the growth at that reading. Each cell is expected over real
with a 95 % interval (bootstrap over videos), and the real count. An interval wider than 0.9 to 1.1 says little.

The same on the holdout videos of the training (published between the bundle's split and its as-of time) shows which part of a deviation
comes from the fit, and which part from changed times.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.training.rate_fit import Spans
from index_builder.training.rate_spans import forecast_spans, spans
from model.engagement.bins import HOUR_US
from model.engagement.types import metric_types
from model.forecaster import Forecaster
from model.rates import MIN_MEAN

AGES_H = (0.5, 1, 3, 6, 12, 24, 48, 96, 168)
EDGES_H = (0, 2, 8, 20, 36, 72, np.inf)
TIMES_PER_SPAN = 8
RESAMPLES = 1000


def asked(
    observed: Observed, video: NDArray[np.int64], until_us: int, max_age_us: int, *, drawn: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Videos, starts and ends of spans whose engagement is known."""
    published = observed.data.published_us
    if not observed.continuous:
        v, start, end = spans(observed, 0, until_us, max_age_us, np.random.default_rng(0))
        fine = np.isin(v, video) & (start > published[v])
        return v[fine], start[fine], end[fine]
    v = np.repeat(video, len(AGES_H))
    age_h = np.tile(AGES_H, len(video))
    if drawn:
        share = np.random.default_rng(0).random(len(v))
        age_h = AGES_H[0] * (AGES_H[-1] / AGES_H[0]) ** share
    start = published[v] + (age_h * HOUR_US).astype(np.int64)
    fine = (start + HOUR_US <= until_us) & (start - published[v] <= max_age_us)
    return v[fine], start[fine], start[fine] + HOUR_US


def ratio(
    expected: NDArray[np.float64], real: NDArray[np.float64], video: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Expected over real, and its 95 % bootstrap interval over videos."""
    own = np.unique(video, return_inverse=True)[1]
    sums = np.stack([np.bincount(own, column) for column in (expected, real)])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=RESAMPLES) @ sums.T
    low, high = np.quantile((drawn[:, 0] + 1e-9) / (drawn[:, 1] + 1e-9), (0.025, 0.975))
    return float(sums[0].sum() / sums[1].sum()), float(low), float(high)


def table(found: Spans, expected: NDArray[np.float64], age_h: NDArray[np.float64], types: tuple[str, ...]) -> list[str]:
    """Lines of a Markdown table: one row for each type, one column for each bucket of the ages (N,) at which spans start."""
    lines = [
        "| type | " + " | ".join(f"{a:g}-{b:g} h" for a, b in pairwise(EDGES_H)) + " | all |",
        "|---|" + "---|" * len(EDGES_H),
    ]
    for k, kind in enumerate(types):
        cells = []
        for low, high in [*pairwise(EDGES_H), (0, np.inf)]:
            rows = (age_h >= low) & (age_h < high) & np.isfinite(found.grown[:, k])
            real = found.grown[rows, k]
            if not real.sum():
                cells.append("-")
                continue
            middle, low, high = ratio(expected[rows, k], real, found.video[rows])
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f}) of {real.sum():,.0f}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--published-from", required=True)
    parser.add_argument("--published-before", default="9999-01-01")
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--drawn", action="store_true")
    args = parser.parse_args()
    from_us, before_us = (
        int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)
        for text in (args.published_from, args.published_before)
    )
    forecaster = Forecaster.load(args.bundle, device="cpu")
    manifest = forecaster.manifest
    data = load_dataset(args.data)
    observed = Observed.of(data, manifest.metric)
    video = np.flatnonzero((data.published_us >= from_us) & (data.published_us < before_us))
    video = np.sort(np.random.default_rng(0).permutation(video)[: args.videos])
    v, start, end = asked(observed, video, data.last_us() or 0, manifest.schema.max_age_us, drawn=args.drawn)
    found = forecast_spans(forecaster, observed, v, start, end, n_times=None if observed.continuous else TIMES_PER_SPAN)
    print(f"{len(np.unique(v)):,} videos, {len(found.moments.cold):,} forecasts")
    expected = found.summed(found.served)
    print("\n".join(table(found, expected, (start - data.published_us[v]) / HOUR_US, manifest.types)))
    some = found.moments.mean >= MIN_MEAN
    metric = list(metric_types(manifest.metric, manifest.types))
    factor = found.served.reshape(len(some), -1)[some][:, metric].sum(1) / found.moments.mean[some]
    print(
        f"rate over the median of the next hour: {factor.min():.2f} to {factor.max():.2f}; "
        f"stated {manifest.evaluation['rate_factor']}"
    )


if __name__ == "__main__":
    main()
