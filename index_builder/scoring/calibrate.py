"""Calibrates on the holdout: finds how far each quantile must be stretched so that outcomes lie beyond it at the intended rate."""

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
    """Fit the stretch of quantiles to samples and their parts of growth (N, J, N_PARTS).

    For a cold start, only the first outcome is used. The first outcome is the hardest to forecast, and users ask for
    it. Without this rule, the many later outcomes of a video would outweigh its first outcome.

    If there are enough videos to tell drift from chance, one stretch is fitted to the older half of the videos and
    one to the newer half. Each quantile gets the larger of the two stretches, because a change within the holdout is
    likely to continue after it.

    If there are fewer videos, the stretch of warm samples is shrunk towards 1. The fewer videos there are, the more
    this stretch is shrunk.
    """
    known = np.isfinite(samples.growth)
    first = (np.cumsum(known, axis=1) == 1) & known
    known &= first | ~samples.cold[:, None]
    published_s = samples.now_us / SECOND_US - samples.age_s
    videos, at = np.unique(samples.video, return_index=True)
    older = published_s < np.median(published_s[at]) if len(at) else np.zeros(0, np.bool_)
    many = len(videos) >= _MIN_DRIFT_VIDEOS
    fits = [_fitted(samples, parts, known & rows[:, None]) for rows in ([older, ~older] if many else [older | True])]
    stretch = np.max([fit.stretch for fit in fits], axis=0)
    if not many:
        stretch[:COLD] **= len(videos) / (len(videos) + _PRIOR_VIDEOS)
    return Calibration(stretch)


def _fitted(samples: Samples, parts: NDArray[np.float32], outcomes: NDArray[np.bool_]) -> Calibration:
    if not outcomes.any():
        return Calibration.identity()
    age_s = np.broadcast_to(samples.age_s[:, None], outcomes.shape)[outcomes]
    cold = np.broadcast_to(samples.cold[:, None], outcomes.shape)[outcomes]
    found = parts[outcomes].astype(np.float64)
    return Calibration.fit(
        age_s, samples.horizon_s[outcomes], cold, found[:, 1], found[:, N_CENTRE:], samples.growth[outcomes]
    )
