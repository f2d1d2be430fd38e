"""Differences of two methods' scores on the same queries, with paired bootstrap intervals over whole videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.scoring import answers

Array = NDArray[np.float64]

DRAWS: Final = 2000
SCORES: Final = ("nMSE", "pinball")


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a score, the second method's minus the first's, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def differences(
    video: NDArray[np.int64], y: Array, first: Array, second: Array, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """Return the differences of the nMSE and of the pinball loss over all queries, the second method's minus the first's.

    Args:
        video: (n,) integers that identify the queries' videos.
        y: (n,) true growth.
        first: growth forecasts of the first method (``index_builder.scoring.answers``).
        second: growth forecasts of the second method. If a method has no quantiles, there is no difference of pinball.
        draws: number of bootstrap draws.
        seed: seed of the random numbers.
    """
    parts = np.stack([_sums(video, y, growth) for growth in (first, second)])
    rng, n = np.random.default_rng(seed), parts.shape[1]
    drawn = np.empty((draws, len(SCORES)))
    for k in range(draws):
        one, two = _scores(np.bincount(rng.integers(0, n, n), minlength=n) @ parts)
        drawn[k] = two - one
    one, two = _scores(parts.sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    found = {name: Difference(float(two[i] - one[i]), float(low[i]), float(high[i])) for i, name in enumerate(SCORES)}
    return {name: difference for name, difference in found.items() if np.isfinite(difference.value)}


def _sums(video: NDArray[np.int64], y: Array, growth: Array) -> Array:
    """Return (V, 5) for V videos: number of queries, sums of y, of y^2, of the squared error of the mean, and of the pinball loss."""
    _, owner = np.unique(video, return_inverse=True)
    loss = np.zeros_like(y)
    for level in answers.INTERVAL:
        forecast = answers.quantile(growth, level)
        miss = y - (np.full_like(y, np.nan) if forecast is None else forecast)
        loss += np.maximum(level * miss, (level - 1) * miss) / len(answers.INTERVAL)
    columns = (np.ones_like(y), y, y * y, (y - answers.mean(growth)) ** 2, loss)
    return np.stack([np.bincount(owner, column) for column in columns], axis=1)


def _scores(sums: Array) -> Array:
    """Return nMSE and pinball (..., 2) from sums (..., 5) over videos."""
    n, y, squares, error, loss = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([error / n / (squares / n - (y / n) ** 2), loss / n], axis=-1)
