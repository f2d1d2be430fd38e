"""The base forecast of growth, which reads only a curve. A neighbour's residual is its growth minus its base forecast.

The base forecast is linear in a few features of the curve at an age a, with L(a) = log2(1 + count at age a):

    1,  L(a),  L(a)^2 / 10,  L(a) - L(a / 2),  L(a) - L(3a / 4),  L(a) - L(7a / 8)

There is one vector of weights for each nominal age and each horizon. Between two nominal ages, the two forecasts are
interpolated in log age. A forecast is at least 0 and does not fall with the horizon.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US
from model.growth.curve_kernels import N_GROWTH, NOMINAL_AGES_US, curve_level

N_BASE: Final = 6
"""Number of features of the base forecast."""
LOG_AGES: Final = np.log(NOMINAL_AGES_US / SECOND_US)
"""(len(NOMINAL_AGES_US),) float64 logarithms of the nominal ages in seconds."""


@numba.njit(cache=True, nogil=True)
def _position(age_s, log_ages):  # type: ignore[no-untyped-def]
    """Return the nominal age before an age, and how far the age is on the way to the next one, 0 .. 1."""
    x = np.log(max(age_s, 1.0))
    low = min(max(np.searchsorted(log_ages, x, side="right") - 1, 0), len(log_ages) - 2)
    return low, min(max((x - log_ages[low]) / (log_ages[low + 1] - log_ages[low]), 0.0), 1.0)


@numba.njit(cache=True, nogil=True)
def _fill_base(age_s, features, weights, log_ages, out):  # type: ignore[no-untyped-def]
    low, share = _position(age_s, log_ages)
    least = 0.0
    for h in range(weights.shape[1]):
        grown = 0.0
        for f in range(len(features)):
            grown += features[f] * ((1 - share) * weights[low, h, f] + share * weights[low + 1, h, f])
        least = max(least, grown)
        out[h] = least


@numba.njit(cache=True, nogil=True)
def curve_features(ages_us, values, n, age_us, out):  # type: ignore[no-untyped-def]
    """Write the features of a curve with n known points at ``age_us`` into ``out`` (N_BASE,). The curve must cover the age."""
    level = curve_level(ages_us, values, n, age_us)
    out[0], out[1], out[2] = 1.0, level, level * level / 10
    for i in range(3):
        share = 2.0 ** -(i + 1)
        out[3 + i] = level - curve_level(ages_us, values, n, np.int64(age_us * (1 - share)))


@numba.njit(cache=True, nogil=True)
def base_growth(ages_us, values, n, age_us, weights, log_ages, features, out):  # type: ignore[no-untyped-def]
    """Write the base forecast of a curve from ``age_us`` on into ``out`` (N_GROWTH,), in log2 units.

    Args:
        ages_us: (>= n,) int64 ages of the curve in microseconds.
        values: (>= n,) int64 counts of the curve.
        n: number of known points, which must cover ``age_us``.
        age_us: age in microseconds.
        weights: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) float64.
        log_ages: LOG_AGES.
        features: (N_BASE,) float64 array whose content is overwritten.
        out: (N_GROWTH,) float64.
    """
    curve_features(ages_us, values, n, age_us, features)
    _fill_base(age_us * 1e-6, features, weights, log_ages, out)


def no_base() -> NDArray[np.float64]:
    """Return the weights of a base forecast that is always 0."""
    return np.zeros((len(NOMINAL_AGES_US), N_GROWTH, N_BASE))


@numba.njit(cache=True, nogil=True)
def _fill_many(age_s, features, weights, log_ages, out):  # type: ignore[no-untyped-def]
    for i in range(len(age_s)):
        _fill_base(age_s[i], features[i], weights, log_ages, out[i])


def base_of_features(
    level: NDArray[np.float64], shares: NDArray[np.float64], age_s: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the base forecasts (N, N_GROWTH) of N curves.

    ``level`` (N,) is L(a), ``shares`` (N, 3) are the last three features, and ``age_s`` (N,) the ages in seconds.
    """
    features = np.column_stack([np.ones(len(level)), level, level * level / 10, shares])
    out = np.zeros((len(level), weights.shape[1]))
    _fill_many(age_s, features, weights, LOG_AGES, out)
    return out
