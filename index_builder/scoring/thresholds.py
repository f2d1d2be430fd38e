"""Scores probabilities of passing a threshold: does what is forecast with 30 % happen in 30 % of the cases?"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.thresholds import exceedance, growth_to

FACTORS: Final = (1.25, 1.5, 2.0, 4.0)
"""The thresholds are the present count times these factors."""
_TENTHS: Final = 10

Array = NDArray[np.float64]


def reliability(y: Array, growth: Array, value_now: Array) -> list[dict[str, Any]]:
    """Return, for each tenth of probability, how often the thresholds were passed.

    A tenth without a forecast is left out.

    Args:
        y: (n,) real growth in log2 units.
        growth: (n, 1 + len(QUANTILES)) forecast mean and quantiles of growth.
        value_now: (n,) present counts.

    Returns:
        One dictionary for each tenth with ``n``, the mean forecast ``probability`` and the fraction that ``passed``.
    """
    asked, passed = [], []
    for factor in FACTORS:
        threshold = np.ceil(np.maximum(value_now * factor, value_now + 1))
        wanted = growth_to(threshold, value_now)
        asked.append(exceedance(growth[:, 1:], wanted))
        passed.append(y >= wanted)
    probability, happened = np.concatenate(asked), np.concatenate(passed)
    tenth = np.minimum((probability * _TENTHS).astype(np.int64), _TENTHS - 1)
    out = []
    for at in range(_TENTHS):
        rows = tenth == at
        if rows.any():
            out.append(
                {
                    "from": at / _TENTHS,
                    "n": int(rows.sum()),
                    "probability": float(probability[rows].mean()),
                    "passed": float(happened[rows].mean()),
                }
            )
    return out
