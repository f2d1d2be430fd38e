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
from model.quantiles.head import MEDIAN, N_CENTRE, QUANTILES, joined

_MIN_FORECASTS: Final = 30
"""Minimum number of forecasts in a cell of the scores."""
_AGES_H: Final = 0.25 * 2.0 ** np.arange(12)
"""Ages in hours that divide the cells of the scores. Each cell covers one doubling of the age."""


LEVEL_WEIGHTS: Final = tuple(1 / 3 if at == MEDIAN else (2 / 3) / (len(QUANTILES) - 1) for at in range(len(QUANTILES)))
"""Weight of each quantile in the pinball loss. The weights sum to 1, and the median has a third of the weight."""


def warm_loss(samples: Samples, parts: NDArray[np.float32]) -> float:
    """Return the mean loss of the parts of growth (N, J, N_PARTS) over the labels of warm samples.

    The loss of a label is the pinball loss of the quantiles, weighted with ``LEVEL_WEIGHTS``, plus half of the squared
    error of the mean. The loss is NaN if there are no labels.
    """
    rows = np.isfinite(samples.growth) & ~samples.cold[:, None]
    if not rows.any():
        return float("nan")
    answer = uncalibrated(parts[rows])
    error = samples.growth[rows][:, None] - answer
    levels = np.array(QUANTILES)
    pinball = np.maximum(levels * error[:, 1:], (levels - 1) * error[:, 1:]).mean(0) @ np.array(LEVEL_WEIGHTS)
    return float(pinball + 0.5 * np.square(error[:, 0]).mean())


def uncalibrated(parts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean and the quantiles (..., 1 + len(QUANTILES)) of parts (..., N_PARTS), without any stretch."""
    whole = parts.astype(np.float64)
    return np.maximum(joined(whole[..., :N_CENTRE], whole[..., N_CENTRE:]), 0.0)


def holdout_scores(
    samples: Samples, parts: NDArray[np.float32], plain: NDArray[np.float32] | None, calibration: Calibration
) -> dict[str, Any]:
    """Return the scores of calibrated parts of growth (N, J, N_PARTS), by age bucket, over all samples, and for cold starts.

    ``plain`` are the parts of forecasts without neighbours. These forecasts are scored separately, without calibration.
    """
    stretched = calibrated(samples, parts, calibration)
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
            cells[name] = asdict(score(samples.growth[rows], stretched[rows]))
    rows = known & warm
    without = {}
    if plain is not None and rows.any():
        without = asdict(score(samples.growth[rows], uncalibrated(plain[rows])))
    return {"cells": cells, "without_retrieval": without}


def calibrated(samples: Samples, parts: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float64]:
    """Return the mean and the calibrated quantiles (N, J, 1 + len(QUANTILES)) of parts (N, J, N_PARTS)."""
    whole = parts.astype(np.float64)
    return calibration.apply(
        samples.age_s, samples.horizon_s, samples.cold, whole[..., :N_CENTRE], whole[..., N_CENTRE:]
    )


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
