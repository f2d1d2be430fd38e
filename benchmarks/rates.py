"""Expected engagements (``intensity_per_hour``) beside real ones, by type and age, on videos published after the training.

    python -m benchmarks.rates BUNDLE DATA --published-from 2026-06-01 [--videos 2000]

Events: the rate at an age beside what the next hour brought. Counters: rates at eight moments of the gap to the next reading, asked
with what was known at its start, beside what that reading added.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_builder.bundles.forecast import histories
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed, snapshot_rows
from model.engagement.bins import HOUR_US
from model.engagement.rows import cells_at
from model.forecast import Request
from model.forecaster import Forecaster

AGES_H = (0.5, 1, 3, 6, 12, 24, 48, 96, 168)
MOMENTS = 8


def asked(seen: Observed, video: NDArray[np.int64], until_us: int) -> tuple[NDArray[np.int64], ...]:
    """Videos, starts and ends of spans whose engagement is known."""
    published = seen.data.published_us
    if seen.continuous:
        v = np.repeat(video, len(AGES_H))
        start = published[v] + np.tile((np.array(AGES_H) * HOUR_US).astype(np.int64), len(video))
        return v, start, start + HOUR_US
    rows = snapshot_rows(seen.metric)
    owner = np.searchsorted(seen.metric.offsets, rows, side="right") - 1
    same = np.flatnonzero((owner[1:] == owner[:-1]) & np.isin(owner[:-1], video))
    return owner[same], seen.metric.time_us[rows[same]], seen.metric.time_us[rows[same + 1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--published-from", required=True)
    parser.add_argument("--videos", type=int, default=2000)
    given = parser.parse_args()
    from_us = int(datetime.fromisoformat(given.published_from).replace(tzinfo=UTC).timestamp() * 1e6)
    forecaster = Forecaster.load(given.bundle, device="cpu")
    types = forecaster.manifest.types
    data = load_dataset(given.data)
    seen, until_us = Observed.of(data, forecaster.manifest.metric), data.last_us() or 0
    video = np.flatnonzero(data.published_us >= from_us)
    video = np.sort(np.random.default_rng(0).permutation(video)[: given.videos])
    v, start, end = asked(seen, video, until_us)
    fine = (end <= until_us) & (start - data.published_us[v] <= forecaster.manifest.schema.max_age_us)
    v, start, end = v[fine], start[fine], end[fine]
    moments = 1 if seen.continuous else MOMENTS
    expected = np.zeros((len(v), len(types)))
    factor = []
    for first in range(0, len(v), 512):
        part = slice(first, first + 512)
        cells = cells_at(seen.events, seen.counters, v[part], start[part], data.published_us[v[part]], len(types))
        known = histories(cells, types)
        for moment in range(moments):
            now = start[part] + (end - start)[part] * moment // moments
            requests = [
                Request(data.videos[a], history, int(at), (HOUR_US,))
                for a, history, at in zip(v[part], known, now, strict=True)
            ]
            for i, answer in enumerate(forecaster.forecast(requests, explain=False)):
                expected[first + i] += np.array([answer.intensity[kind] for kind in types]) / moments
                median = answer.quantiles[0, 1] - answer.value_now
                if median >= 0.5 and forecaster.manifest.metric.rstrip("s") in types:
                    factor.append(answer.intensity[forecaster.manifest.metric.rstrip("s")] / median)
    expected *= ((end - start) / HOUR_US)[:, None]
    age_h = (start - data.published_us[v]) / HOUR_US
    edges = [0, 2, 8, 20, 36, 72, 1e9]
    print("| type | " + " | ".join(f"{a:g}-{b:g} h" for a, b in pairwise(edges)) + " | all |")
    print("|---|" + "---|" * len(edges))
    for k, kind in enumerate(types):
        one = Observed.of(data, kind)
        real = one.count_at(v, end) - one.count_at(v, start)
        cells_ = []
        for low, high in [*pairwise(edges), (0, 1e12)]:
            rows = (age_h >= low) & (age_h < high)
            cells_.append(
                f"{expected[rows, k].sum() / real[rows].sum():.2f} ({real[rows].sum():,.0f})"
                if real[rows].sum()
                else "-"
            )
        print(f"| {kind} | " + " | ".join(cells_) + " |")
    if factor:
        stated = forecaster.manifest.evaluation["rate_factor"]
        print(f"rate over the median of the next hour: {min(factor):.2f} to {max(factor):.2f}; stated {stated}")


if __name__ == "__main__":
    main()
