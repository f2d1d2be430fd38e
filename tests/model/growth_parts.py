"""Parts of growth around a given centre, for tests of calibration and scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import N_STEPS


def parts(centre: NDArray[np.float64], distance: float = 1.0) -> NDArray[np.float32]:
    """Return parts (..., N_PARTS) whose mean and median are ``centre``, and whose 0.1 and 0.9 quantiles are ``distance`` away.

    The other quantiles are half as far away, and one and a half times as far away.
    """
    middle = np.stack([centre, centre], axis=-1)
    steps = np.broadcast_to(distance / 2, (*centre.shape, N_STEPS))
    return np.concatenate([middle, steps], axis=-1).astype(np.float32)
