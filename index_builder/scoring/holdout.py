"""Computes what training needs from its holdout videos: the half that decides when to stop, the loss, and the bundle's scores."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet
from index_builder.samples.samples import Samples
from index_builder.scoring.metrics import score
from model.quantiles.calibration import Calibration
from model.quantiles.head import QUANTILES

_MIN_FORECASTS: Final = 30
"""Minimum number of forecasts in a cell of the scores."""
_AGES_H: Final = 0.25 * 2.0 ** np.arange(12)
"""Ages in hours that divide the cells of the scores. Each cell covers one doubling of the age."""


def warm_pinball(samples: Samples, quantiles: NDArray[np.float32]) -> float:
    """Return the mean pinball loss of growth quantiles (N, J, 3) over the labels of warm samples.

    The loss is in log2 units. It is NaN if there are no labels.
    """
    rows = np.isfinite(samples.growth) & ~samples.cold[:, None]
    if not rows.any():
        return float("nan")
    error = samples.growth[rows][:, None] - quantiles[rows].astype(np.float64)
    levels = np.array(QUANTILES)
    return float(np.maximum(levels * error, (levels - 1) * error).mean())


def holdout_scores(
    samples: Samples, quantiles: NDArray[np.float32], plain: NDArray[np.float32] | None, calibration: Calibration
) -> dict[str, Any]:
    """Return the scores of calibrated quantiles (N, J, 3), by age bucket, over all samples, and for cold starts.

    ``plain`` are the quantiles of forecasts without neighbours. These forecasts are scored separately.
    """
    stretched = calibration.apply(samples.age_s, samples.horizon_s, samples.cold, quantiles.astype(np.float64))
    cells: dict[str, Any] = {}
    warm = np.broadcast_to(~samples.cold[:, None], samples.growth.shape)
    bucket = np.broadcast_to(
        np.searchsorted(_AGES_H, samples.age_s / 3600, side="right")[:, None], samples.growth.shape
    )
    known = np.isfinite(samples.growth)
    for name, rows in [("pooled", known & warm), ("cold start", known & ~warm)] + [
        (f"age bucket {b}", known & warm & (bucket == b)) for b in np.unique(bucket).tolist()
    ]:
        if rows.sum() >= _MIN_FORECASTS:
            cells[name] = _scores(samples.growth[rows], stretched[rows])
    rows = known & warm
    without = {}
    if plain is not None and rows.any():
        without = _scores(samples.growth[rows], plain[rows].astype(np.float64))
    return {"cells": cells, "without_retrieval": without}


def _scores(growth: NDArray[np.float64], quantiles: NDArray[np.float64]) -> dict[str, Any]:
    return asdict(score(growth, quantiles[:, 1], quantiles[:, 0], quantiles[:, 2]))


def stopping_half(data: DataSet, video: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return flags (N,) of the samples whose video is in the stopping half of the holdout videos.

    A digest of the video's id determines the half of a video, so each video is always in the same half. The stopping
    half decides when training stops. The stopping half also decides how far intervals are stretched for the scores of
    the other half.
    """
    chosen = {
        v: hashlib.sha256(data.videos[v].video_id.encode()).digest()[0] & 1 == 0 for v in np.unique(video).tolist()
    }
    return np.array([chosen[v] for v in video.tolist()], dtype=bool)
