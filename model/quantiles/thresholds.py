"""Probabilities that a count passes a threshold, from the quantiles of its growth.

A threshold T is passed at a horizon if the count there is at least T. Counts are whole numbers, so this means a count
above ceil(T) - 1/2. Between two quantiles, the logit of the level is interpolated linearly in growth. Beyond the
outermost quantiles, the line of the outermost pair is continued, so the tails of growth fall exponentially.
Quantiles say little about very rare events, so a probability is kept within ``LIMITS`` unless it is certain.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import QUANTILES, grid_position, horizon_at

LIMITS: Final = (0.001, 0.999)
"""Smallest and largest probability of something that is not certain."""
CONFIDENCES: Final = (0.5, 0.9)
"""Probabilities for which the time of passing is computed."""
_LOGITS: Final = np.log(np.array(QUANTILES) / (1 - np.array(QUANTILES)))
_MIN_DISTANCE: Final = 1e-9


def growth_to(threshold: NDArray[np.float64], value_now: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the growth, in log2 units, above which a count passes a threshold. The arguments broadcast."""
    whole = np.maximum(np.ceil(threshold) - 0.5, value_now)
    out: NDArray[np.float64] = np.log2((1.0 + whole) / (1.0 + np.asarray(value_now)))
    return out


def exceedance(quantiles: NDArray[np.float64], growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability that the outcome is at least ``growth``, (M,) float64 within ``LIMITS``.

    Args:
        quantiles: (M, len(QUANTILES)) quantiles of growth in log2 units, in order.
        growth: (M,) growth in log2 units, above 0.
    """
    row = np.arange(len(growth))
    below = (quantiles < growth[:, None]).sum(1)
    low = np.clip(below - 1, 0, len(QUANTILES) - 2)
    left, right = quantiles[row, low], quantiles[row, low + 1]
    slope = (_LOGITS[low + 1] - _LOGITS[low]) / np.maximum(right - left, _MIN_DISTANCE)
    # Beyond the highest quantile the line starts there, so that it is continuous even if its pair of quantiles is equal.
    start = np.where(below == len(QUANTILES), low + 1, low)
    logit = _LOGITS[start] + slope * (growth - quantiles[row, start])
    out: NDArray[np.float64] = np.clip(1 / (1 + np.exp(np.clip(logit, -50, 50))), *LIMITS)
    return out


def passing(
    on_grid: NDArray[np.float64],
    value_now: float,
    thresholds: NDArray[np.float64],
    horizon_s: NDArray[np.float64],
    max_horizon_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probabilities of passing thresholds, and when a threshold is passed with the probabilities ``CONFIDENCES``.

    The probability never decreases with the horizon and never increases with the threshold. It is 1 for a threshold
    that is passed already.

    Args:
        on_grid: (N_GRID + 1, len(QUANTILES)) quantiles of one video's growth on the head's grid.
        value_now: present count.
        thresholds: (T,) counts > 0, ascending.
        horizon_s: (H,) horizons in seconds.
        max_horizon_s: longest trained horizon in seconds.

    Returns:
        The probabilities (T, H), and the horizons in seconds (T, len(CONFIDENCES)) by which each threshold is passed:
        0 if it is passed already, and NaN if it is not passed with this probability by the longest horizon.
    """
    size, points = len(thresholds), len(on_grid)
    wanted = growth_to(thresholds, value_now)
    found = exceedance(np.tile(on_grid, (size, 1)), wanted.repeat(points)).reshape(size, points)
    # The continued lines may cross from one horizon to the next.
    found = np.minimum.accumulate(np.maximum.accumulate(found, axis=1), axis=0)
    found[thresholds <= value_now] = 1.0
    low, share = grid_position(horizon_s, max_horizon_s)
    before, after = found[:, low], found[:, low + 1]
    probabilities = np.minimum(before + (after - before) * share, after)
    times = np.full((size, len(CONFIDENCES)), np.nan)
    for t, confidence in np.ndindex(times.shape):
        reached = np.flatnonzero(found[t] >= CONFIDENCES[confidence])
        if len(reached):
            at = float(reached[0])
            if at:
                previous, next_ = found[t, reached[0] - 1 : reached[0] + 1]
                at -= (next_ - CONFIDENCES[confidence]) / (next_ - previous)
            times[t, confidence] = horizon_at(at, max_horizon_s)
    return probabilities, times
