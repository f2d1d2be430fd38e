"""Computes scores of growth forecasts. Growth is y = log2((1 + count at the horizon) / (1 + count now)).

All inputs are finite arrays float64 in log2 units with n >= 1 rows. If there is only one row, or if growth does not
vary, a ratio or correlation is undefined. Then the score is NaN or infinite, and no error is raised.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.scoring import answers

__all__ = ["Scores", "average_ranks", "cover", "intervals", "mae", "nmse", "pinball", "score", "spearman", "width"]

Array = NDArray[np.float64]

LOW: Final = 0.1
MEDIAN: Final = 0.5
HIGH: Final = 0.9


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of n forecasts. A score that needs quantiles is NaN without them.

    ``nmse`` and ``src`` score the mean, and ``mae`` scores the median. ``cover`` is the fraction of outcomes from the
    0.1 to the 0.9 quantile and should be 0.80. ``width`` is the width of this interval. ``pinball`` is the mean of the
    losses at the quantiles 0.1, 0.5 and 0.9. ``cover50`` and ``cover90`` are the fractions from the 0.25 to the 0.75
    and from the 0.05 to the 0.95 quantile.
    """

    n: int
    nmse: float
    mae: float
    src: float
    cover: float = float("nan")
    width: float = float("nan")
    pinball: float = float("nan")
    cover50: float = float("nan")
    cover90: float = float("nan")


def nmse(y: Array, forecast: Array) -> float:
    """Return the mean squared error divided by the population variance of y. A forecast by the mean of y has the nMSE 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean((forecast - y) ** 2) / np.var(y))


def mae(y: Array, forecast: Array) -> float:
    """Return the mean absolute error in log2 units."""
    return float(np.mean(np.abs(forecast - y)))


def average_ranks(x: Array) -> Array:
    """Return ranks (n,) float64 from 1 to n. Equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def spearman(y: Array, forecast: Array) -> float:
    """Return the Spearman rank correlation, which is Pearson's correlation of the average ranks."""
    a, b = average_ranks(y), average_ranks(forecast)
    a -= a.mean()
    b -= b.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


def pinball(y: Array, forecast: Array, level: float) -> float:
    """Return the mean pinball loss of a forecast of the quantile ``level`` in (0, 1)."""
    miss = y - forecast
    return float(np.mean(np.maximum(level * miss, (level - 1) * miss)))


def cover(y: Array, low: Array, high: Array) -> float:
    """Return the fraction of y inside [low, high], bounds included."""
    return float(np.mean((y >= low) & (y <= high)))


def width(low: Array, high: Array) -> float:
    """Return the mean width of the interval in log2 units."""
    return float(np.mean(high - low))


def score(y: Array, growth: Array) -> Scores:
    """Return all scores of forecasts ``growth`` (n, C) of outcomes ``y`` (n,). ``index_builder.scoring.answers`` describes the columns."""
    mean, median = answers.mean(growth), answers.median(growth)
    n, point = len(y), (nmse(y, mean), mae(y, median), spearman(y, mean))
    low, high = answers.quantile(growth, LOW), answers.quantile(growth, HIGH)
    if low is None or high is None:
        return Scores(n, *point)
    losses = pinball(y, low, LOW), pinball(y, median, MEDIAN), pinball(y, high, HIGH)
    others = [
        float("nan") if inner is None or outer is None else cover(y, inner, outer)
        for inner, outer in (
            (answers.quantile(growth, level), answers.quantile(growth, 1 - level)) for level in (0.25, 0.05)
        )
    ]
    return Scores(n, *point, cover(y, low, high), width(low, high), float(np.mean(losses)), *others)


def intervals(
    video: NDArray[np.int64], y: Array, growth: Array, *, seed: int = 0, draws: int = 200, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the bootstrap interval of every score, keyed by the score's name.

    Whole videos are drawn with replacement, because the errors of one video are correlated. If rows were drawn, the
    intervals would be too narrow. ``video`` (n,) identifies the videos by any integers.
    """
    names = [name for name in Scores.__slots__ if name != "n"]
    _, owner = np.unique(video, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    size = np.bincount(owner)
    start = np.cumsum(size) - size
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, len(names)))
    for k in range(draws):
        pick = rng.integers(0, len(size), len(size))
        inside = np.arange(size[pick].sum()) - np.repeat(np.cumsum(size[pick]) - size[pick], size[pick])
        rows = order[np.repeat(start[pick], size[pick]) + inside]
        found = asdict(score(y[rows], growth[rows]))
        drawn[k] = [found[name] for name in names]
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(names)}
