"""Computes means with bootstrap intervals for any group of forecasts. The bootstrap draws whole videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of n forecasts with its 95 % interval."""

    n: int
    value: float
    low: float
    high: float


class VideoBootstrap:
    """Draws whole videos with replacement, because the errors of one video are correlated.

    For each draw, the bootstrap stores how often each video was drawn. A mean is a ratio of two sums over videos. So
    the means of a group of forecasts need only two matrix products for all draws.

    Args:
        video: any integers (n,) that identify the videos.
        draws: number of draws.
        seed: seed of the random numbers.
    """

    def __init__(self, video: NDArray[np.int64], draws: int = 400, seed: int = 0) -> None:
        _, self._owner = np.unique(video, return_inverse=True)
        self._n = int(self._owner.max()) + 1
        rng = np.random.default_rng(seed)
        self._times = np.stack(
            [np.bincount(rng.integers(0, self._n, self._n), minlength=self._n).astype(np.float32) for _ in range(draws)]
        )

    def mean(self, x: Array, rows: NDArray[np.bool_] | None = None) -> Mean:
        """Return the mean of ``x`` (n,) over ``rows`` (n,), by default over all rows. At least one row is needed."""
        rows = np.ones(len(x), dtype=bool) if rows is None else rows
        return self._quotient(np.where(rows, x, 0.0), rows.astype(np.float64), int(rows.sum()))

    def quotient(self, x: Array, y: Array) -> Mean:
        """Return the mean of ``x`` (n,) divided by the mean of ``y`` (n,). Both means use the same draws.

        The quotient compares two forecasts of the same queries.
        """
        return self._quotient(x, y, len(x))

    def _quotient(self, x: Array, y: Array, n: int) -> Mean:
        above, below = (self._times @ np.bincount(self._owner, z, self._n) for z in (x, y))
        drawn = above[below > 0] / below[below > 0]
        total = float(y.sum())
        value = float(x.sum()) / total if total else float("nan")
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        return Mean(n, value, float(low), float(high))
