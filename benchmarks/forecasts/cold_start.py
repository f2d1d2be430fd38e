"""Cold start: how well content and creator alone forecast a video's first count, before anything is known of it.

    python -m benchmarks.forecasts.cold_start --bundle B [--data D] [--published-from 2026-06-01]

Forecasts each video at its publication, without any count, for the time of its first observation. Prints Spearman's correlation of
forecasts and observations, the share of observations inside the interval from q0.1 to q0.9, and its width.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from index_builder.bundles.forecast import forecast_at
from index_builder.bundles.open_bundle import open_bundle
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed, snapshot_rows
from index_builder.progress import progress
from index_builder.scoring.metrics import cover, intervals, spearman, width
from model.engagement.bins import HOUR_US, SECOND_US
from model.quantiles.head import HIGH, LOW


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    data = Path(os.environ.get("M3TR_TEST_DATA", "../shared/data")) / "youtube_trending"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--published-from", default="2026-06-01")
    arguments = parser.parse_args()
    from_us = int(datetime.fromisoformat(arguments.published_from).replace(tzinfo=UTC).timestamp()) * SECOND_US
    with open_bundle(arguments.bundle) as forecaster:
        observed = Observed.of(load_dataset(arguments.data), forecaster.manifest.metric)
        published = observed.data.published_us
        rows = snapshot_rows(observed.metric)
        owner = np.searchsorted(observed.metric.offsets, rows, side="right") - 1
        video, first = np.unique(owner, return_index=True)
        rows = rows[first]
        horizon_us = observed.metric.time_us[rows] - published[video]
        asked = (published[video] >= from_us) & (horizon_us > 0) & (horizon_us <= forecaster.manifest.max_horizon_us)
        video, rows, horizon_us = video[asked], rows[asked], horizon_us[asked]
        with progress("forecast", len(video)) as bar:
            counts = forecast_at(forecaster, observed, video, published[video], horizon_us, bar.advance)
    y, q = np.log2(1 + observed.totals[rows].astype(np.float64)), np.log2(1 + counts)
    bounds = intervals(video, y, q)
    low, high = q[:, 1 + LOW], q[:, 1 + HIGH]
    print(f"{len(video):,} videos, first observed at a median age of {np.median(horizon_us) / HOUR_US:.1f} h")
    print(f"SRC    {spearman(y, q[:, 0]):.3f}  (95 %: {bounds['src'][0]:.3f} to {bounds['src'][1]:.3f})")
    print(f"cover  {cover(y, low, high):.3f}  (target 0.80)")
    print(f"width  {width(low, high):.2f} log2 units")


if __name__ == "__main__":
    main()
