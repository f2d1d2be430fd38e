"""Features of a creator: how far the creator's other videos had grown, as far as this was known at a given time."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from model.growth.base_growth import LOG_AGES, N_BASE, base_growth
from model.growth.curve_kernels import CURVE_EDGES_US, N_GROWTH, curve_growth, pace_sum

MAX_PAST: Final = 32
"""Maximum number of a creator's videos that are read. The newest videos are chosen."""
N_CREATOR: Final = 3 * N_GROWTH + 7
"""Number of features. The features are, in order:

- the number of known videos, their mean last level, and their mean growth so far
- for each of ``growth_horizons_us``: the mean growth over this horizon after the target's age, and whether it is
  known
- the mean level at the target's age, and whether it is known. A level is log2(1 + count).
- the number of known growth steps, and how much faster than usual these steps were
- the mean residual over each horizon: the growth minus the base forecast (``model.growth.base_growth``), shrunk towards 0
"""
RESIDUAL: Final = 2 * N_GROWTH + 7
"""First column of the residuals."""
_PRIOR_VIDEOS: Final = 2.0
"""Prior: number of videos with a residual of 0 that are added to the creator's own videos."""
_PRIOR_STEPS: Final = 3.0
"""Prior: number of growth steps at the usual pace that are added to the creator's own steps."""
_EDGES_US: Final = CURVE_EDGES_US


@numba.njit(cache=True, nogil=True)
def known_points(ages_us, length, published_us, now_us):  # type: ignore[no-untyped-def]
    """Return the number of a curve's points that were observed by ``now_us``."""
    n = 0
    while n < length and published_us + ages_us[n] <= now_us:
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def creator_features(past, ages_us, values, lengths, published_us, now_us, age_us, horizons_us, pace, base, out):  # type: ignore[no-untyped-def]
    """Write the features of a creator into ``out``. The features are computed from the curves of the creator's other videos.

    Only points that were observed by ``now_us`` are read, from at most MAX_PAST videos.

    Args:
        past: (P,) int64 indices of the creator's videos in the other arrays. The newest video comes last.
        ages_us: (V, n) int64 ages of the curves.
        values: (V, n) int64 counts of the curves.
        lengths: (V,) int64 numbers of points of the curves.
        published_us: (V,) int64 publication times.
        now_us: current time.
        age_us: age of the target at ``now_us``.
        horizons_us: (N_GROWTH,) int64 horizons of growth.
        pace: (N_CURVE,) usual growth by age.
        base: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) weights of the base forecast.
        out: (N_CREATOR,) float32.
    """
    out[:] = 0
    one = np.empty(N_GROWTH + 1)
    sums = np.zeros(N_GROWTH + 1)
    known = np.zeros(N_GROWTH + 1)
    residuals, expected, features = np.zeros(N_GROWTH), np.empty(N_GROWTH), np.empty(N_BASE)
    videos, last_level, total_growth = 0, 0.0, 0.0
    faster, steps = 0.0, 0
    for p in range(len(past) - 1, -1, -1):
        v = past[p]
        n = known_points(ages_us[v], lengths[v], published_us[v], now_us)
        if n == 0:
            continue
        videos += 1
        last = np.log2(1.0 + values[v, n - 1])
        last_level += last
        total_growth += last - np.log2(1.0 + values[v, 0])
        more, added = pace_sum(ages_us[v], values[v], n, _EDGES_US, pace)
        faster += more
        steps += added
        curve_growth(ages_us[v], values[v], n, age_us, horizons_us, one)
        if not np.isnan(one[N_GROWTH]):
            base_growth(ages_us[v], values[v], n, age_us, base, LOG_AGES, features, expected)
        for h in range(N_GROWTH + 1):
            if not np.isnan(one[h]):
                sums[h] += one[h]
                known[h] += 1
                if h < N_GROWTH:
                    residuals[h] += one[h] - expected[h]
        if videos == MAX_PAST:
            break
    if videos == 0:
        return
    out[0] = np.log1p(videos) / 3
    out[1] = last_level / videos / 16
    out[2] = total_growth / videos / 8
    for h in range(N_GROWTH + 1):
        if known[h] > 0:
            scale = 16.0 if h == N_GROWTH else 2.0
            out[3 + 2 * h] = sums[h] / known[h] / scale
            out[4 + 2 * h] = 1.0
        if h < N_GROWTH:
            out[RESIDUAL + h] = residuals[h] / (known[h] + _PRIOR_VIDEOS)
    out[RESIDUAL - 2] = np.log1p(steps) / 3
    out[RESIDUAL - 1] = faster / (steps + _PRIOR_STEPS)
