"""Features of a creator at a time: how the creator's earlier videos grew, as far as it was known then."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from model.growth.curve_kernels import CURVE_EDGES_US, curve_growth, pace_sum

MAX_PAST: Final = 32
"""Number of earlier videos that are read, the newest ones."""
N_GROWTH: Final = 8
N_CREATOR: Final = 2 * N_GROWTH + 7
"""Features: number of known videos, their mean last level and mean growth so far, mean level at this age and whether it is known, mean
growth over each of ``growth_horizons_us`` after this age and whether it is known, number of known growth steps, and how much faster
than usual they were."""
_PRIOR_STEPS: Final = 3.0
"""Prior: growth steps at the usual pace that are added to a creator's own."""
_EDGES_US: Final = CURVE_EDGES_US


@numba.njit(cache=True, nogil=True)
def known_points(ages_us, length, published_us, now_us):  # type: ignore[no-untyped-def]
    """The number of a curve's points that were observed by ``now_us``."""
    n = 0
    while n < length and published_us + ages_us[n] <= now_us:
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def creator_features(past, ages_us, values, lengths, published_us, now_us, age_us, horizons_us, pace, out):  # type: ignore[no-untyped-def]
    """Write features to ``out`` (N_CREATOR,) float32 from the curves of a creator's other videos.

    ``past`` (P,) int64 indexes the other arrays, the newest video last; ``ages_us`` and ``values`` (V, n) int64; ``lengths`` and
    ``published_us`` (V,) int64; ``pace`` (N_CURVE,) the usual growth by age. Only points observed by ``now_us`` are read, of up to
    MAX_PAST videos.
    """
    out[:] = 0
    one = np.empty(N_GROWTH + 1)
    sums = np.zeros(N_GROWTH + 1)
    known = np.zeros(N_GROWTH + 1)
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
        for h in range(N_GROWTH + 1):
            if not np.isnan(one[h]):
                sums[h] += one[h]
                known[h] += 1
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
    out[N_CREATOR - 2] = np.log1p(steps) / 3
    out[N_CREATOR - 1] = faster / (steps + _PRIOR_STEPS)
