"""The layout of a method's growth forecasts, as an array (n, C) float64 in log2 units.

C is 1 for a point forecast, which is then the mean and the median. C is 3 for the 0.1 quantile, the mean, which is
also the median, and the 0.9 quantile. C is 1 + len(QUANTILES) for the mean and the quantiles in order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import MEDIAN, QUANTILES

Array = NDArray[np.float64]

ALL: Final = 1 + len(QUANTILES)
"""Number of columns of a forecast with the mean and all quantiles."""
_INTERVAL: Final = (0.1, 0.5, 0.9)


def levels(growth: Array) -> tuple[float, ...]:
    """Return the levels of the quantiles that the forecasts have. A point forecast has none."""
    return {1: (), len(_INTERVAL): _INTERVAL, ALL: QUANTILES}[growth.shape[1]]


def mean(growth: Array) -> Array:
    """Return the mean (n,) of each forecast."""
    return growth[:, 1 if growth.shape[1] == len(_INTERVAL) else 0]


def median(growth: Array) -> Array:
    """Return the median (n,) of each forecast."""
    return growth[:, 1 + MEDIAN] if growth.shape[1] == ALL else mean(growth)


def quantile(growth: Array, level: float) -> Array | None:
    """Return a quantile (n,) of each forecast, or None if the forecasts do not have it."""
    if level not in levels(growth):
        return None
    return growth[:, levels(growth).index(level) + (growth.shape[1] == ALL)]
