"""Simple growth forecasts to compare the model with. Each baseline is fitted on training pairs only.

A pair is a video at one time together with one horizon. The growth of a pair is log2((1 + count at the horizon) / (1 +
count now)).
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.queries import Pairs

__all__ = ["Baseline", "GrowthFactor", "LogLinear", "MeanGrowth", "Pairs", "Persistence"]


class Baseline(Protocol):
    """Interface of every baseline."""

    name: str

    def fit(self, pairs: Pairs) -> Self:
        """Learn from training pairs and return ``self``."""
        ...

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the growth (n,) float64 of each pair in log2 units."""
        ...


class Persistence:
    """Forecasts that the count does not change: growth 0."""

    name = "persistence"

    def fit(self, pairs: Pairs) -> Self:
        """Return ``self``. There is nothing to learn."""
        return self

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return zero for each pair."""
        return np.zeros(len(pairs))


class MeanGrowth:
    """Forecasts the same number for every pair: the mean growth of the training pairs."""

    name = "mean growth"

    def __init__(self) -> None:
        self._mean = np.nan

    def fit(self, pairs: Pairs) -> Self:
        """Compute the mean growth and return ``self``."""
        self._mean = float(pairs.known().growth.mean())
        return self

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the mean growth for each pair."""
        return np.full(len(pairs), self._mean)


class GrowthFactor:
    """Forecasts one factor per (age, horizon): the constant-scaling model of Szabo and Huberman (2010).

    The model is log N(t + h) = log N(t) + c(t, h). Here N(t) is the count at age t, and h is the horizon. Ages and
    horizons are divided into log-spaced cells, and c is the mean log growth of the training pairs in a cell. If a cell
    has fewer than ``min_pairs`` pairs, the surrounding cells are added until there are enough pairs. A pair outside the
    training range uses the nearest cell.

    Args:
        per_octave: number of cells per doubling of age and of horizon.
        min_pairs: minimum number of pairs per cell, >= 1.
    """

    name = "growth factor"

    def __init__(self, per_octave: int = 2, min_pairs: int = 30) -> None:
        if per_octave < 1 or min_pairs < 1:
            raise ValueError(f"per_octave and min_pairs must be at least 1, not {per_octave} and {min_pairs}")
        self._per_octave = per_octave
        self._min_pairs = min_pairs
        self._origin = (0, 0)
        self._table = np.full((1, 1), np.nan)

    def fit(self, pairs: Pairs) -> Self:
        """Fill the table of c(t, h) and return ``self``. The table has shape (age cells, horizon cells)."""
        pairs = pairs.known()
        age, horizon = self._cell(pairs.age_s), self._cell(pairs.horizon_s)
        self._origin = int(age.min()), int(horizon.min())
        shape = int(age.max()) - self._origin[0] + 1, int(horizon.max()) - self._origin[1] + 1
        total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        at = age - self._origin[0], horizon - self._origin[1]
        np.add.at(total, at, pairs.growth)
        np.add.at(count, at, 1)
        min_pairs = min(self._min_pairs, len(pairs))
        self._table = np.array(
            [[_pooled(total, count, i, j, min_pairs) for j in range(shape[1])] for i in range(shape[0])]
        )
        return self

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the mean log growth of each pair's cell."""
        rows, columns = self._table.shape
        i = np.clip(self._cell(pairs.age_s) - self._origin[0], 0, rows - 1)
        j = np.clip(self._cell(pairs.horizon_s) - self._origin[1], 0, columns - 1)
        return np.asarray(self._table[i, j], dtype=np.float64)

    def _cell(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        cells: NDArray[np.int64] = np.floor(np.log2(np.maximum(seconds, 1.0)) * self._per_octave).astype(np.int64)
        return cells


def _pooled(total: NDArray[np.float64], count: NDArray[np.int64], i: int, j: int, min_pairs: int) -> float:
    """Return the mean growth over the smallest square of cells around (i, j) that has ``min_pairs`` pairs.

    The whole table has at least ``min_pairs`` pairs, so the search ends.
    """
    reach = 0
    while True:
        square = slice(max(i - reach, 0), i + reach + 1), slice(max(j - reach, 0), j + reach + 1)
        if (n := int(count[square].sum())) >= min_pairs:
            return float(total[square].sum() / n)
        reach += 1


class LogLinear:
    """Forecasts by Szabo and Huberman's log-linear model, with coefficients that depend on age and horizon.

    Growth is regressed by ordinary least squares on v = log2(1 + count now), a = log2(1 + age in seconds), h = log2(1
    + horizon in seconds) and the products v a, v h, a h.
    """

    name = "log-linear"

    def __init__(self) -> None:
        self._weights = np.full(7, np.nan)
        self._centre = np.zeros(3)
        self._scale = np.ones(3)

    def fit(self, pairs: Pairs) -> Self:
        """Compute the least-squares coefficients and return ``self``. A term that does not vary in training gets weight 0."""
        pairs = pairs.known()
        raw = _logs(pairs)
        self._centre = raw.mean(axis=0)
        spread = raw.std(axis=0)
        # A term that varies only by rounding errors must not be scaled up to unit variance.
        self._scale = np.where(spread > 1e-9, spread, np.inf)
        self._weights = np.linalg.lstsq(self._terms(raw), pairs.growth, rcond=None)[0]
        return self

    def predict(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the regression's value for each pair. The value may be negative, although counts never fall."""
        return np.asarray(self._terms(_logs(pairs)) @ self._weights, dtype=np.float64)

    def _terms(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        v, a, h = ((raw - self._centre) / self._scale).T
        return np.stack([np.ones_like(v), v, a, h, v * a, v * h, a * h], axis=1)


def _logs(pairs: Pairs) -> NDArray[np.float64]:
    """Return log2(1 + x) of count, age and horizon, as an array of shape (n, 3)."""
    return np.log2(1 + np.stack([pairs.value_now, pairs.age_s, pairs.horizon_s], axis=1))
