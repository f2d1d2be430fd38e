"""Fits the base forecast of growth, with which neighbours are compared. See ``model.growth.base_growth``."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.growth.base_growth import N_BASE, curve_features
from model.growth.curve_kernels import N_GROWTH, NOMINAL_AGES_US, curve_growth
from model.growth.curves import Curves

_MIN_VIDEOS: Final = 30
"""Minimum number of videos for weights of their own. Otherwise the weights of the nearest nominal age are used."""
_RIDGE: Final = 1.0


def fit_base(known: Curves, horizons_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weights (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) float64 of the base forecast, by ridge regression.

    ``known`` are the curves to learn from, and ``horizons_us`` (N_GROWTH,) the horizons.
    """
    out = np.zeros((len(NOMINAL_AGES_US), N_GROWTH, N_BASE))
    fitted = np.zeros(out.shape[:2], bool)
    features, growth = np.empty((len(known.lengths), N_BASE)), np.empty((len(known.lengths), N_GROWTH + 1))
    for bucket, age_us in enumerate(NOMINAL_AGES_US.tolist()):
        _read(known.ages_us, known.values, known.lengths, age_us, horizons_us, features, growth)
        for h in range(N_GROWTH):
            rows = np.flatnonzero(np.isfinite(growth[:, h]))
            if len(rows) < _MIN_VIDEOS:
                continue
            x, y = features[rows], growth[rows, h]
            penalty = _RIDGE * np.eye(N_BASE)
            penalty[0, 0] = 0
            out[bucket, h] = np.linalg.solve(x.T @ x + penalty, x.T @ y)
            fitted[bucket, h] = True
    for h in range(N_GROWTH):
        some = np.flatnonzero(fitted[:, h])
        if len(some):
            nearest = np.abs(np.arange(len(out))[:, None] - some).argmin(1)
            out[:, h] = out[some[nearest], h]
    return out


@numba.njit(cache=True)
def _read(ages_us, values, lengths, age_us, horizons_us, features, growth):  # type: ignore[no-untyped-def]
    for v in range(len(lengths)):
        curve_growth(ages_us[v], values[v], lengths[v], age_us, horizons_us, growth[v])
        if not np.isnan(growth[v, 0]):
            curve_features(ages_us[v], values[v], lengths[v], age_us, features[v])
