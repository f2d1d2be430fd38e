"""Kernels that read growth curves: how a video's count grew after a given age, as far as it was known at a given time."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US

_FIRST_EDGE_S: Final = 900
_RATIO: Final = 2 ** (1 / 3)
N_CURVE: Final = 40
"""Maximum number of points of a curve. There is at most one point per coarse age bin."""
CURVE_EDGES_US: Final = np.array(
    [0] + [round(_FIRST_EDGE_S * _RATIO**k * SECOND_US) for k in range(N_CURVE)], dtype=np.int64
)
"""Edges of a curve's coarse age bins, (N_CURVE + 1,) int64 microseconds. The first edge is 0. The other edges run
from 15 minutes to about 86 days."""
NOMINAL_AGES_US: Final = np.array([round(900 * 2 ** (k / 2)) * SECOND_US for k in range(26)], dtype=np.int64)
"""Nominal ages at which trajectories are compared, (26,) int64 microseconds: from 15 minutes to 60 days, two per doubling."""


def age_bucket(age_us: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return the index of the largest nominal age that is at most each age, or -1 if there is none."""
    return np.searchsorted(NOMINAL_AGES_US, age_us, side="right") - 1


N_GROWTH: Final = 8
"""Number of horizons over which the growth of other videos is read."""


def growth_horizons_us(max_horizon_us: int) -> NDArray[np.int64]:
    """Return the horizons over which the growth of other videos is read, (N_GROWTH,) int64 microseconds."""
    return np.array([max_horizon_us * n // 168 for n in (1, 6, 12, 24, 48, 72, 120, 168)], dtype=np.int64)


@numba.njit(cache=True, nogil=True)
def curve_level(ages_us, values, n, age_us):  # type: ignore[no-untyped-def]
    """Return log2(1 + count) of a curve with n >= 1 known points at an age. Before the first point, the level is that of the first point.

    Between points, the level is linear in log(age + 1 minute). After the last point, it is that of the last point.
    """
    k = min(max(np.searchsorted(ages_us[:n], age_us, side="left"), 1), n - 1) if n > 1 else 0
    j = max(k - 1, 0)
    low, high = np.log2(1.0 + values[j]), np.log2(1.0 + values[k])
    a, b = np.log(ages_us[j] * 1e-6 + 60.0), np.log(ages_us[k] * 1e-6 + 60.0)
    share = (np.log(age_us * 1e-6 + 60.0) - a) / (b - a) if b > a else 0.0
    return low + min(max(share, 0.0), 1.0) * (high - low)


@numba.njit(cache=True, nogil=True)
def curve_growth(ages_us, values, n, age_us, horizons_us, out):  # type: ignore[no-untyped-def]
    """Write one curve's growth after ``age_us`` into ``out``, a float64 array of shape (H + 1,).

    ``ages_us`` and ``values`` (n,) are the known part of the curve. out[:H] is the log2 growth over each horizon.
    out[H] is log2(1 + count) at ``age_us``. Unknown values are NaN. Between points, log2(1 + count) is linear in
    log(age + 1 minute).
    """
    out[:] = np.nan
    if n < 1 or age_us < ages_us[0] or age_us > ages_us[n - 1]:
        return
    j = 0
    for h in range(-1, len(horizons_us)):
        at = age_us if h < 0 else age_us + horizons_us[h]
        if at > ages_us[n - 1]:
            return
        while j + 1 < n and ages_us[j + 1] < at:
            j += 1
        k = min(j + 1, n - 1)
        low, high = np.log2(1.0 + values[j]), np.log2(1.0 + values[k])
        a, b = np.log(ages_us[j] * 1e-6 + 60.0), np.log(ages_us[k] * 1e-6 + 60.0)
        share = (np.log(at * 1e-6 + 60.0) - a) / (b - a) if b > a else 0.0
        level = low + share * (high - low)
        if h < 0:
            out[len(horizons_us)] = level
        else:
            out[h] = level - out[len(horizons_us)]


@numba.njit(cache=True, nogil=True)
def slope(ages_us, values, i):  # type: ignore[no-untyped-def]
    """Return the growth per log age from point i - 1 of a curve to point i.

    The slope is d log2(1 + count) / d log2(age + 1 minute), but at most 8.
    """
    grown = np.log2(1.0 + values[i]) - np.log2(1.0 + values[i - 1])
    older = np.log2((ages_us[i] * 1e-6 + 60.0) / (ages_us[i - 1] * 1e-6 + 60.0))
    return min(grown / max(older, 0.02), 8.0)


@numba.njit(cache=True, nogil=True)
def pace_sum(ages_us, values, n, edges_us, pace):  # type: ignore[no-untyped-def]
    """Return by how much a curve with n known points grew faster than ``pace`` (N_CURVE,).

    Each step of the curve has a slope. The result is the sum of slope minus pace over all steps, and the number of steps.
    """
    total, steps = 0.0, 0
    for i in range(1, n):
        if ages_us[i - 1] <= 0:
            continue
        at = np.searchsorted(edges_us, ages_us[i], side="right") - 1
        total += slope(ages_us, values, i) - pace[min(max(at, 0), len(pace) - 1)]
        steps += 1
    return total, steps
