"""Calibration on the holdout: how far each interval must be stretched to hold as often as it should."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.engagement.bins import SECOND_US
from model.quantiles.calibration import COLD, Calibration

_MIN_DRIFT_VIDEOS: Final = 2000
"""Number of videos from which the older and the newer half are compared."""
_PRIOR_VIDEOS: Final = 200
"""Number of holdout videos that say as much about the width of intervals as the network learned from the training videos."""


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
