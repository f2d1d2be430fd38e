"""Differences of two models' scores on the same queries, from their files of forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from index_builder.scoring import answers, paired
from index_builder.scoring.paired import Difference

__all__ = ["KEY", "Difference", "differences"]

KEY: Final = ["video_id", "metric", "now", "target_time"]


def growths(answered: Path, forecasts: Path) -> tuple[pd.Series, NDArray[np.float64], NDArray[np.float64]]:
    """Video ids (n,), true growth (n,) and forecast growth (n, 4) in log2 units: the mean and the quantiles 0.1, 0.5 and 0.9.

    A missing forecast counts as growth 0. Forecasts without a mean use their median for it.
    """
    columns = ["mean", *(f"q{level}" for level in answers.INTERVAL)]
    found = pd.read_parquet(forecasts)
    found = found if "mean" in found else found.assign(mean=found["q0.5"])
    rows = pd.read_parquet(answered).merge(found[KEY + columns], on=KEY, how="left")
    now = np.log2(1 + rows.value_now.to_numpy(float))
    counts = np.stack([rows[name].fillna(rows.value_now).clip(lower=0).to_numpy(float) for name in columns], axis=1)
    return rows.video_id, np.log2(1 + rows.value_target.to_numpy(float)) - now, np.log2(1 + counts) - now[:, None]


def differences(answered: Path, first: Path, second: Path, *, seed: int = 0) -> dict[str, Difference]:
    """Differences of nMSE and pinball over all queries, the second model's minus the first's, with 95 % intervals over videos."""
    videos, y, one = growths(answered, first)
    two = growths(answered, second)[2]
    return paired.differences(pd.factorize(videos)[0], y, one, two, seed=seed)
