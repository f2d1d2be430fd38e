"""Calibrates on the holdout: moves the median and stretches the other quantiles so that outcomes lie beyond each at the intended rate."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.engagement.bins import SECOND_US
from model.quantiles.calibration import COLD, Calibration
from model.quantiles.head import N_CENTRE

_MIN_DRIFT_VIDEOS: Final = 2000
"""Minimum number of holdout videos for comparing their older half with their newer half."""
_PRIOR_VIDEOS: Final = 200
"""Weight of the network's own interval widths, as a number of holdout videos.

This weight is used to shrink the stretch if there are few holdout videos.
"""


def calibrate(samples: Samples, parts: NDArray[np.float32]) -> Calibration:
    """Fit the shift of the median and the stretch of the other quantiles to samples and their parts of growth (N, J, N_PARTS).

    For a cold start, only the first outcome is used. The first outcome is the hardest to forecast, and users ask for
    it. Without this rule, the many later outcomes of a video would outweigh its first outcome.

    If there are enough videos to tell drift from chance, one stretch is fitted to the older half of the videos and
    one to the newer half. Each quantile gets the larger of the two stretches, because a change within the holdout is
    likely to continue after it.

    If there are fewer videos, the stretch of warm samples is shrunk towards 1, and the shift towards 0. The fewer
    videos there are, the more they are shrunk. The shift is always fitted to all videos.
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
    stretch[:COLD] **= weight
    return Calibration(stretch, shift)


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
