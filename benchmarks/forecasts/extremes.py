"""Forecasts of 10,000 artificial histories, compared with the largest growth in the training data for the same age and horizon.

    python -m benchmarks.forecasts.extremes BUNDLE DATA [--histories 10000]

DATA is what the bundle was trained on. A median may be one doubling above the largest growth, and never below the current count. The
largest growth is computed from the data: over all training videos, at 40 ages within half a doubling of the forecast's age.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from model.engagement.bins import SECOND_US
from model.forecast import Request
from model.forecaster import Forecaster
from model.quantiles.head import MEDIAN
from tests.model.histories import artificial

AGES = 40
OFFSET_S = 60.0


class Largest:
    """The largest growth in a data set as known at a time, log2 units, by age and horizon."""

    def __init__(self, observed: Observed, until_us: int) -> None:
        self._observed, self._until_us = observed, until_us
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, age_us: int, horizon_us: int) -> float:
        step = round(4 * np.log2(age_us / SECOND_US + OFFSET_S))
        key = step, horizon_us
        if key not in self._known:
            self._known[key] = self._read(2 ** (step / 4), horizon_us)
        return self._known[key]

    def _read(self, at_s: float, horizon_us: int) -> float:
        """The largest growth at ages within half a doubling of ``at_s``; if no video is that old, at the oldest ages."""
        published = self._observed.data.published_us
        best = -1.0
        while best < 0 and at_s > OFFSET_S / 2:
            for age_s in at_s * 2 ** np.linspace(-0.5, 0.5, AGES) - OFFSET_S:
                now = published + int(max(age_s, 0.0) * SECOND_US)
                target = now + horizon_us
                best = max(best, self._growth(np.arange(len(published)), now, target))
            at_s /= 2**0.25
        return best

    def _growth(self, video: NDArray[np.int64], now: NDArray[np.int64], target: NDArray[np.int64]) -> float:
        fine = target <= self._until_us
        if not fine.any():
            return -1.0
        before, after = (self._observed.count_at(video[fine], t[fine]) for t in (now, target))
        return float(np.log2((1 + after) / (1 + before)).max())


def breaches(
    forecaster: Forecaster, observed: Observed, requests: list[tuple[str, Request]], slack: float = 1.0
) -> tuple[list[str], float]:
    """Descriptions of the forecasts whose mean or median leaves the range of the training data, and the largest excess in log2 units."""
    largest = Largest(observed, int(forecaster.manifest.training["as_of_us"]))
    limit_us = forecaster.manifest.max_horizon_us
    asked = [
        (name, replace(request, horizons_us=tuple(h for h in request.horizons_us if h <= limit_us)))
        for name, request in requests
    ]
    found, worst = [], -np.inf
    for (name, request), forecast in zip(asked, forecaster.forecast([r for _, r in asked], explain=False), strict=True):
        centre = np.stack([forecast.mean, forecast.quantiles[:, MEDIAN]])
        growth = np.log2((1 + centre) / (1 + forecast.value_now))
        allowed = [largest(request.now_us - request.video.published_us, h) for h in request.horizons_us]
        excess = float((growth - np.array(allowed)).max())
        worst = max(worst, excess)
        if excess > slack or (centre < forecast.value_now).any() or not np.isfinite(forecast.quantiles).all():
            found.append(
                f"{name}: {request.video.video_id}, count {forecast.value_now:g}, means and medians {centre.tolist()}, growth {allowed}"
            )
    return found, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    forecaster = Forecaster.load(args.bundle, device="cpu")
    manifest = forecaster.manifest
    observed = Observed.of(load_dataset(args.data, before_us=int(manifest.training["as_of_us"])), manifest.metric)
    found, worst = breaches(forecaster, observed, list(artificial(manifest.types, args.histories, args.seed)))
    for line in found[:20]:
        print(line)
    print(
        f"{args.histories} histories: {len(found)} leave the range of the training data; the highest median is {worst:+.2f} doublings"
    )
    print("from the largest growth of that age and horizon")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
