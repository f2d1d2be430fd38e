"""Calibrates on the holdout: moves the median and stretches the other quantiles so that outcomes lie beyond each at the intended rate."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.engagement.bins import SECOND_US
from model.quantiles.calibration import (
    BEYOND,
    COLD,
    STRETCH_RANGE,
    Calibration,
    beyond_median,
    calibration_column,
    calibration_row,
)
from model.quantiles.head import N_CENTRE, N_STEPS, distances, moved

_MIN_DRIFT_VIDEOS: Final = 2000
"""Minimum number of holdout videos for comparing their older half with their newer half."""
_PRIOR_VIDEOS: Final = 200
"""Weight of the stretch that all ages and horizons have in common, as a number of holdout videos.

The stretches of the buckets are shrunk towards it if there are few holdout videos.
"""
_PRIOR_NARROW: Final = 100
"""Weight of the network's own interval widths, as a number of holdout videos, where the holdout asks for narrower intervals.

Wider intervals are taken as the holdout asks for them. Half of the holdout has decided when training stopped, so its errors
are a little too small.
"""
_MIN_DISTANCE: Final = 1e-6
_ROUNDING: Final = 1e-9


def calibrate(samples: Samples, parts: NDArray[np.float32]) -> Calibration:
    """Fit the shift of the median and the stretch of the other quantiles to samples and their parts of growth (N, J, N_PARTS).

    For a cold start, only the first outcome is used. The first outcome is the hardest to forecast, and users ask for
    it. Without this rule, the many later outcomes of a video would outweigh its first outcome.

    If there are enough videos to tell drift from chance, one stretch is fitted to the older half of the videos and
    one to the newer half. Each quantile gets the larger of the two stretches, because a change within the holdout is
    likely to continue after it.

    If there are fewer videos, the stretch of warm samples is shrunk towards the stretch that all of them need together,
    and the shift towards 0. The fewer videos there are, the more they are shrunk. The shift is always fitted to all videos.
    """
    known = np.isfinite(samples.growth)
    first = (np.cumsum(known, axis=1) == 1) & known
    known &= first | ~samples.cold[:, None]
    published_s = samples.now_us / SECOND_US - samples.age_s
    videos, at = np.unique(samples.video, return_index=True)
    older = published_s < np.median(published_s[at]) if len(at) else np.zeros(0, np.bool_)
    many = len(videos) >= _MIN_DRIFT_VIDEOS
    weight = 1.0 if many else len(videos) / (len(videos) + _PRIOR_VIDEOS)
    shift = _fitted(samples, parts, known).shift
    shift[:COLD] *= weight
    halves = [older, ~older] if many else [older | True]
    stretch = np.max([_fitted(samples, parts, known & rows[:, None], shift).stretch for rows in halves], axis=0)
    if not many and (outcomes := known & ~samples.cold[:, None]).any():
        common = _common(samples, parts, outcomes, shift)
        stretch[:COLD] = stretch[:COLD] ** weight * common ** (1 - weight)
    return Calibration(stretch, shift)


def _common(
    samples: Samples, parts: NDArray[np.float32], outcomes: NDArray[np.bool_], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the stretch (N_STEPS,) of all warm outcomes together. Every video has the same weight.

    The outcomes of one video are alike, so the finite-sample correction counts videos and not outcomes. A stretch below 1
    is shrunk towards 1.
    """
    row = np.nonzero(outcomes)[0]
    _, video, number = np.unique(samples.video[row], return_inverse=True, return_counts=True)
    weight, n = 1 / number[video] / len(number), len(number)
    cell = calibration_row(samples.age_s[row], samples.cold[row]), calibration_column(samples.horizon_s[outcomes])
    whole = parts[outcomes].astype(np.float64)
    median = moved(whole[:, :N_CENTRE], whole[:, N_CENTRE:], shift[cell])[:, 1]
    scores = beyond_median(samples.growth[outcomes], median) / np.maximum(distances(whole[:, N_CENTRE:]), _MIN_DISTANCE)
    out = np.empty(N_STEPS)
    for at, level in enumerate((1 - BEYOND) * (n + 1) / n):
        order = np.argsort(scores[:, at], kind="stable")
        first = np.searchsorted(np.cumsum(weight[order]), level - _ROUNDING)
        out[at] = scores[order[min(first, len(order) - 1)], at]
    out = np.where(out < 1, np.maximum(out, STRETCH_RANGE[0]) ** (n / (n + _PRIOR_NARROW)), out)
    return np.clip(out, *STRETCH_RANGE)


def _fitted(
    samples: Samples, parts: NDArray[np.float32], outcomes: NDArray[np.bool_], shift: NDArray[np.float64] | None = None
) -> Calibration:
    if not outcomes.any():
        return Calibration.identity()
    age_s = np.broadcast_to(samples.age_s[:, None], outcomes.shape)[outcomes]
    cold = np.broadcast_to(samples.cold[:, None], outcomes.shape)[outcomes]
    found = parts[outcomes].astype(np.float64)
    return Calibration.fit(
        age_s, samples.horizon_s[outcomes], cold, found[:, 1], found[:, N_CENTRE:], samples.growth[outcomes], shift
    )
