"""The layout of a method's growth forecasts, as an array (n, C) float64 in log2 units.

C is 1 for a point forecast, which is then the mean and the median. C is 4 for the mean and the quantiles 0.1, 0.5 and
0.9. C is 1 + len(QUANTILES) for the mean and all quantiles in order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import QUANTILES

Array = NDArray[np.float64]

ALL: Final = 1 + len(QUANTILES)
"""Number of columns of a forecast with the mean and all quantiles."""
INTERVAL: Final = (0.1, 0.5, 0.9)
"""Levels of the quantiles that the pinball score reads."""


def levels(growth: Array) -> tuple[float, ...]:
    """Return the levels of the quantiles that the forecasts have. A point forecast has none."""
    return {1: (), 1 + len(INTERVAL): INTERVAL, ALL: QUANTILES}[growth.shape[1]]


def mean(growth: Array) -> Array:
    """Return the mean (n,) of each forecast."""
    return growth[:, 0]


def median(growth: Array) -> Array:
    """Return the median (n,) of each forecast."""
    found = quantile(growth, 0.5)
    return mean(growth) if found is None else found


def quantile(growth: Array, level: float) -> Array | None:
    """Return a quantile (n,) of each forecast, or None if the forecasts do not have it."""
    return growth[:, 1 + levels(growth).index(level)] if level in levels(growth) else None
