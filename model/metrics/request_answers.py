"""Reads from the growth of a batch of videos what each request asks for: its horizons and its thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US
from model.forecast import Request, ThresholdForecast
from model.quantiles.head import growth_at
from model.quantiles.thresholds import CONFIDENCES, passing


def at_horizons(
    requests: Sequence[Request], growth: NDArray[np.float64], max_horizon_s: float
) -> list[NDArray[np.float64]]:
    """Return the growth of each request at its H horizons, (H, 1 + len(QUANTILES)) float64: the mean, then the quantiles.

    ``growth`` (N, N_GRID + 1, 1 + len(QUANTILES)) is the growth on the head's grid.
    """
    sizes = [len(r.horizons_us) for r in requests]
    horizons_s = np.array([h for r in requests for h in r.horizons_us], dtype=np.float64) / SECOND_US
    found = growth_at(growth, np.arange(len(requests)).repeat(sizes), horizons_s, max_horizon_s)
    return np.split(found, np.cumsum(sizes)[:-1])


def threshold_forecasts(
    request: Request, value_now: float, growth: NDArray[np.float64], max_horizon_s: float
) -> list[ThresholdForecast]:
    """Return the forecast of each threshold of a request. ``growth`` (N_GRID + 1, 1 + len(QUANTILES)) is that of its video."""
    if not request.thresholds:
        return []
    horizons_s = np.array(request.horizons_us, dtype=np.float64) / SECOND_US
    thresholds = np.array(request.thresholds, dtype=np.float64)
    probabilities, times_s = passing(growth[:, 1:], value_now, thresholds, horizons_s, max_horizon_s)
    return [
        ThresholdForecast(
            threshold,
            probabilities[t],
            {
                confidence: None if np.isnan(at) else request.now_us + round(at * SECOND_US)
                for confidence, at in zip(CONFIDENCES, times_s[t].tolist(), strict=True)
            },
        )
        for t, threshold in enumerate(request.thresholds)
    ]
