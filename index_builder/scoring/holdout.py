"""What training computes on its holdout videos: the loss for early stopping, the calibration, and the scores of the bundle."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet
from index_builder.samples.samples import Samples
from index_builder.scoring.metrics import score
from model.engagement.bins import SECOND_US
from model.growth.curve_kernels import age_bucket
from model.quantiles.calibration import COLD, Calibration
from model.quantiles.head import QUANTILES

_MIN_FORECASTS: Final = 30
"""Smallest number of forecasts in a cell of the scores."""
_MIN_DRIFT_VIDEOS: Final = 2000
"""Number of videos from which the older and the newer half are compared."""
_PRIOR_VIDEOS: Final = 200
"""Number of holdout videos that say as much about the width of intervals as the network learned from the training videos."""


def warm_pinball(samples: Samples, quantiles: NDArray[np.float32]) -> float:
    """Mean pinball loss of growth quantiles (N, J, 3), log2 units, over the labels of warm samples; NaN without any."""
    rows = np.isfinite(samples.growth) & ~samples.cold[:, None]
    if not rows.any():
        return float("nan")
    error = samples.growth[rows][:, None] - quantiles[rows].astype(np.float64)
    levels = np.array(QUANTILES)
    return float(np.maximum(levels * error, (levels - 1) * error).mean())


def calibrate(samples: Samples, quantiles: NDArray[np.float32]) -> Calibration:
    """Fit the stretch of intervals to samples with their growth quantiles (N, J, 3).

    Of a cold start only the first outcome counts. It is the hardest to forecast and the one that users ask for, and the later outcomes of
    the same video would outvote it. With enough videos to tell drift from chance, each interval is stretched as much as the older or
    the newer half of the videos needs, whichever needs more: what changed within the holdout will go on changing after it. With fewer
    videos the stretch of warm samples is shrunk towards 1, more so the fewer there are.
    """
    known = np.isfinite(samples.growth)
    first = (np.cumsum(known, axis=1) == 1) & known
    known &= first | ~samples.cold[:, None]
    published_s = samples.now_us / SECOND_US - samples.age_s
    videos, at = np.unique(samples.video, return_index=True)
    older = published_s < np.median(published_s[at]) if len(at) else np.zeros(0, np.bool_)
    many = len(videos) >= _MIN_DRIFT_VIDEOS
    fits = [
        _fitted(samples, quantiles, known & rows[:, None]) for rows in ([older, ~older] if many else [older | True])
    ]
    stretch = np.max([fit.stretch for fit in fits], axis=0)
    if not many:
        stretch[:COLD] **= len(videos) / (len(videos) + _PRIOR_VIDEOS)
    return Calibration(stretch)


def _fitted(samples: Samples, quantiles: NDArray[np.float32], outcomes: NDArray[np.bool_]) -> Calibration:
    if not outcomes.any():
        return Calibration.identity()
    age_s = np.broadcast_to(samples.age_s[:, None], outcomes.shape)[outcomes]
    cold = np.broadcast_to(samples.cold[:, None], outcomes.shape)[outcomes]
    return Calibration.fit(
        age_s, samples.horizon_s[outcomes], cold, quantiles[outcomes].astype(np.float64), samples.growth[outcomes]
    )


def holdout_scores(
    samples: Samples, quantiles: NDArray[np.float32], plain: NDArray[np.float32] | None, calibration: Calibration
) -> dict[str, Any]:
    """Scores by age bucket, pooled and of cold starts, of calibrated quantiles (N, J, 3); ``plain`` are those without neighbours."""
    stretched = calibration.apply(samples.age_s, samples.horizon_s, samples.cold, quantiles.astype(np.float64))
    cells: dict[str, Any] = {}
    warm = np.broadcast_to(~samples.cold[:, None], samples.growth.shape)
    bucket = np.broadcast_to(age_bucket((samples.age_s * SECOND_US).astype(np.int64))[:, None], samples.growth.shape)
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
    """A stable half of the holdout videos (N,), by a hash of their ids.

    It decides when training stops, and how far intervals are stretched for the scores of the other half.
    """
    chosen = {
        v: hashlib.sha256(data.videos[v].video_id.encode()).digest()[0] & 1 == 0 for v in np.unique(video).tolist()
    }
    return np.array([chosen[v] for v in video.tolist()], dtype=bool)
