"""What the neighbours of a video did over a horizon, as the trees read it.

For each horizon h, the neighbours whose growth over h is known have the weight

    exp(FOCUS s) 0.5^(d / half-life)

with the similarity s, and the number d of days by which the neighbour was published earlier. There are two half-lives. Recent
neighbours count for more, because the growth of videos changes over the months. The numbers are read at the horizons of
``growth_horizons_us``, and interpolated in log(horizon + 1 minute).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bank.neighbours import KNOWN, N_NEIGHBOUR, RECENCY, RESIDUAL, SIMILARITY
from model.growth.curve_kernels import N_GROWTH

Floats = NDArray[np.float32]

FOCUS: Final = 4.0
"""Factor of the similarity in the weights, as in the fusion block at the start of training."""
HALF_LIVES_DAYS: Final = (14.0, 2.0)
N_MEANS: Final = N_NEIGHBOUR - RESIDUAL - N_GROWTH + 1
"""Number of means over all neighbours. They are the features after the residuals, and the number of neighbours."""
N_NEAR: Final = 3 * len(HALF_LIVES_DAYS) + 4
"""Number of values for a horizon. For each half-life: the mean growth, the base forecast plus the mean residual, and the
sum of the weights. Then the base forecast, the base forecast plus the mean residual of the creator's other videos, the spread of the
neighbours' residuals, and the number of neighbours with known growth."""
_MIN_WEIGHT: Final = 1e-6


def neighbour_means(features: Floats, mask: Floats) -> Floats:
    """Return the means (N, N_MEANS) of neighbours' features (N, K, N_NEIGHBOUR). ``mask`` (N, K) is 1 for a neighbour."""
    out = np.zeros((len(mask), N_MEANS), np.float32)
    if not mask.shape[1]:
        return out
    weight = _weights(features, mask, HALF_LIVES_DAYS[0])
    rest = features[..., RESIDUAL + N_GROWTH :].astype(np.float64)
    total = np.maximum(weight.sum(1), _MIN_WEIGHT)
    out[:, :-1] = np.einsum("nk,nkf->nf", weight, rest, optimize=False) / total[:, None]
    out[:, -1] = mask.sum(1)
    return out


def near_growth(
    features: Floats,
    mask: Floats,
    base: NDArray[np.float64],
    of_creator: NDArray[np.float64],
    horizon_s: NDArray[np.float64],
    growth_s: Sequence[float] | NDArray[np.float64],
) -> Floats:
    """Return what the neighbours did over horizons, (N, J, N_NEAR) float32.

    Args:
        features: (N, K, N_NEIGHBOUR) features of the neighbours.
        mask: (N, K) 1 for a neighbour, 0 for padding.
        base: (N, N_GROWTH) base forecasts of the targets.
        of_creator: (N, N_GROWTH) mean residuals of the creator's other videos.
        horizon_s: (N, J) horizons in seconds.
        growth_s: (N_GROWTH,) horizons in seconds of the neighbours' growth.
    """
    known = features[..., KNOWN : KNOWN + N_GROWTH].astype(np.float64)
    growth = 2 * features[..., :N_GROWTH].astype(np.float64)
    residual = features[..., RESIDUAL : RESIDUAL + N_GROWTH].astype(np.float64)
    table = np.zeros((len(mask), 1 + N_GROWTH, N_NEAR))
    at = table[:, 1:]
    for i, days in enumerate(HALF_LIVES_DAYS):
        weight = _weights(features, mask, days)[..., None] * known
        total = weight.sum(1)
        some = np.maximum(total, _MIN_WEIGHT)
        mean = (weight * residual).sum(1) / some
        at[..., 3 * i] = np.where(total > _MIN_WEIGHT, (weight * growth).sum(1) / some, base)
        at[..., 3 * i + 1] = base + mean
        at[..., 3 * i + 2] = np.log1p(total)
        if i == 0:
            at[..., -2] = np.sqrt((weight * np.square(residual - mean[:, None])).sum(1) / some)
    at[..., -4], at[..., -3] = base, base + of_creator
    at[..., -1] = (known * mask[..., None]).sum(1)
    return _interpolated(table, np.concatenate([[0.0], np.asarray(growth_s, np.float64)]), horizon_s)


def _weights(features: Floats, mask: Floats, half_life_days: float) -> NDArray[np.float64]:
    days = np.expm1(3 * features[..., RECENCY].astype(np.float64))
    weight = np.exp(FOCUS * features[..., SIMILARITY].astype(np.float64)) * mask
    return np.asarray(weight * np.exp2(-days / half_life_days))


def _interpolated(table: NDArray[np.float64], at_s: NDArray[np.float64], horizon_s: NDArray[np.float64]) -> Floats:
    """Interpolate ``table`` (N, H, C), given at the horizons ``at_s`` (H,), at the horizons (N, J). Return (N, J, C)."""
    x, wanted = np.log(at_s + 60), np.log(horizon_s + 60)
    upper = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
    share = np.clip((wanted - x[upper - 1]) / (x[upper] - x[upper - 1]), 0, 1)[..., None]
    rows = np.arange(len(table))[:, None]
    return np.asarray(table[rows, upper - 1] * (1 - share) + table[rows, upper] * share, np.float32)
