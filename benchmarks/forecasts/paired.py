"""Differences of two models' scores on the same queries, with paired bootstrap intervals over whole videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KEY: Final = ["video_id", "metric", "now", "target_time"]
LEVELS: Final = (0.1, 0.5, 0.9)
DRAWS: Final = 2000


@dataclass(frozen=True)
class Difference:
    """Difference of a score, the second model's minus the first's, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def growths(answers: Path, forecasts: Path) -> tuple[pd.Series, NDArray[np.float64], NDArray[np.float64]]:
    """Video ids (n,), true growth (n,) and forecast growth (n, 4) in log2 units: the mean, then the quantiles ``LEVELS``.

    A missing forecast counts as growth 0. Forecasts without a mean use their median for it.
    """
    columns = ["mean", *(f"q{level}" for level in LEVELS)]
    found = pd.read_parquet(forecasts)
    found = found if "mean" in found else found.assign(mean=found["q0.5"])
    rows = pd.read_parquet(answers).merge(found[KEY + columns], on=KEY, how="left")
    now = np.log2(1 + rows.value_now.to_numpy(float))
    counts = np.stack([rows[name].fillna(rows.value_now).clip(lower=0).to_numpy(float) for name in columns], axis=1)
    return rows.video_id, np.log2(1 + rows.value_target.to_numpy(float)) - now, np.log2(1 + counts) - now[:, None]


def sums(owner: NDArray[np.int64], y: NDArray[np.float64], forecast: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each video (V, 5): number of rows, sums of y, of y^2, of the squared error of the mean, and of the pinball loss."""
    miss, error = y - forecast[:, 0], y[:, None] - forecast[:, 1:]
    loss = np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(1)
    return np.stack([np.bincount(owner, weights) for weights in (np.ones_like(y), y, y * y, miss**2, loss)], axis=1)


def scores(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """nMSE and pinball (..., 2) from sums (..., 5) over videos."""
    n, y, squares, error, loss = np.moveaxis(drawn, -1, 0)
    return np.stack([error / n / (squares / n - (y / n) ** 2), loss / n], axis=-1)


def differences(answers: Path, first: Path, second: Path, *, seed: int = 0) -> dict[str, Difference]:
    """Differences of nMSE and pinball over all queries, the second model's minus the first's."""
    videos, y, one = growths(answers, first)
    two = growths(answers, second)[2]
    owner = pd.factorize(videos)[0]
    parts = np.stack([sums(owner, y, forecast) for forecast in (one, two)])
    rng = np.random.default_rng(seed)
    n = parts.shape[1]
    drawn = np.empty((DRAWS, 2))
    for k in range(DRAWS):
        times = np.bincount(rng.integers(0, n, n), minlength=n)
        a, b = scores(times @ parts)
        drawn[k] = b - a
    a, b = scores(parts.sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        name: Difference(float((b - a)[i]), float(low[i]), float(high[i])) for i, name in enumerate(("nMSE", "pinball"))
    }
