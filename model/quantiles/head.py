"""The mathematics of the forecast head.

The head gives quantiles of growth at any horizon. The quantiles never decrease with the horizon and never cross.

Growth over a horizon d is y(d) = log2((1 + N(now + d)) / (1 + N(now))). The network outputs coefficients of ramps
phi_m. Each ramp is 0 at d = 0 and never decreases with d:

    y_0.5 = sum a_m phi_m(d)
    y_0.1 = y_0.5 - sum b_m phi_m(d),   b >= 0
    y_0.9 = y_0.5 + sum c_m phi_m(d),   c >= 0

So no quantile lies below the next lower one. Half of the ramps depend on the horizon. The other half depend on the
ratio of the horizon to the video's age, because the popularity of a video decays as a power law of its age.

If the metric comes from events, there is an additional ramp: the growth that a self-exciting cascade expects
(``model.cascade``). The forecast starts from this ramp, and the coefficients a_m may be negative to reduce it.
Without this ramp, all a_m >= 0. A quantile below 0 is raised to 0, and a quantile below its own value at an earlier
horizon is raised to that value. Both steps keep the quantiles in order.

Calibration stretches the interval at each horizon of a fixed grid. After that, a running maximum makes the quantiles
non-decreasing again. Between grid points, growth is interpolated linearly in log(1 + d / minute). As a result, the
quantiles start at 0, never decrease and never cross, at any d.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

QUANTILES: Final = (0.1, 0.5, 0.9)
N_ABSOLUTE: Final = 12
_MINUTE_S: Final = 60.0
_RELATIVE_KNOTS: Final = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.0, 4.5, 7.0, 10.0])
_AGE_OFFSET_S: Final = 600.0
N_BASIS: Final = N_ABSOLUTE + len(_RELATIVE_KNOTS)
"""Number of ramps. The last ramp is the growth that a cascade expects."""
MAX_GROWTH: Final = 64.0
"""Maximum growth in log2 units. This limit keeps counts finite, even if a broken head returns huge values."""
N_GRID: Final = 64
"""Number of horizons in the grid, not counting 0."""


def _ramps(u: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip((u[..., None] - knots[:-1]) / np.diff(knots), 0.0, 1.0)


def basis(
    age_s: NDArray[np.float64],
    horizon_s: NDArray[np.float64],
    max_horizon_s: float,
    expected: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.float64]:
    """Return the ramps phi_m(d).

    ``age_s`` and ``horizon_s`` are seconds (float64) that broadcast to a common shape. The result has this shape and
    an additional last axis of length N_BASIS. Every ramp lies in [0, 1] except the last one. The last ramp is
    ``expected``: the growth that a cascade expects, in log2 units. ``expected`` has the common shape, or is 0 without
    a cascade.
    """
    absolute = np.log1p(horizon_s / _MINUTE_S)
    first = np.log1p(5.0)
    knots = np.concatenate([[0.0], np.linspace(first, np.log1p(max_horizon_s / _MINUTE_S), N_ABSOLUTE)])
    relative = np.log1p(horizon_s / (age_s + _AGE_OFFSET_S))
    absolute, relative = np.broadcast_arrays(absolute, relative)
    last = np.broadcast_to(expected, absolute.shape)[..., None]
    return np.concatenate([_ramps(absolute, knots), _ramps(relative, _RELATIVE_KNOTS), last], axis=-1)


def grid_s(max_horizon_s: float) -> NDArray[np.float64]:
    """Return the grid's horizons, (N_GRID + 1,) float64 seconds.

    The horizons run from 0 to the maximum and are evenly spaced in log(1 + d / minute).
    """
    return _MINUTE_S * np.expm1(np.linspace(0.0, np.log1p(max_horizon_s / _MINUTE_S), N_GRID + 1))


def grid_growth(
    coefficients: NDArray[np.float32],
    age_s: NDArray[np.float64],
    max_horizon_s: float,
    stretch: NDArray[np.float64] | None = None,
    expected: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.float64]:
    """Return the growth quantiles on the grid.

    Args:
        coefficients: (N, 3, N_BASIS) float32: the coefficients b, a and c of the module, for the quantiles 0.1, 0.5
            and 0.9.
        age_s: (N,) float64, ages at ``now`` in seconds.
        max_horizon_s: longest trained horizon in seconds.
        stretch: (N, N_GRID + 1, 2) factors >= 0 for the lower half and the upper half of the interval. None means
            factors of 1.
        expected: (N, N_GRID + 1) growth that a cascade expects, in log2 units. This growth is 0 at d = 0 and never
            decreases. Without a cascade, ``expected`` is 0.

    Returns:
        (N, N_GRID + 1, 3) float64 in log2 units. The growth is 0 at d = 0 and non-decreasing along the grid and along
        the quantiles.
    """
    phi = basis(age_s[:, None], grid_s(max_horizon_s)[None], max_horizon_s, expected)
    # Without optimisation, einsum sums each row in one fixed order, so a row's result does not depend on the batch.
    parts = np.einsum("ngm,nqm->ngq", phi, coefficients.astype(np.float64), optimize=False)
    below, median, above = parts[..., 0], parts[..., 1], parts[..., 2]
    if stretch is not None:
        below, above = below * stretch[..., 0], above * stretch[..., 1]
    growth = np.maximum(np.stack([median - below, median, median + above], axis=-1), 0.0)
    return np.maximum.accumulate(growth, axis=1)


def growth_at(
    on_grid: NDArray[np.float64], horizon_s: NDArray[np.float64], max_horizon_s: float
) -> NDArray[np.float64]:
    """Interpolate one video's growth ``on_grid`` (N_GRID + 1, 3) at horizons (H,) in seconds. Return float64 of shape (H, 3)."""
    x = np.log1p(grid_s(max_horizon_s) / _MINUTE_S)
    at = np.log1p(horizon_s / _MINUTE_S)
    return np.stack([np.interp(at, x, on_grid[:, q]) for q in range(3)], axis=-1)


def on_grid_at(
    on_grid: NDArray[np.floating], horizon_s: NDArray[np.float64], max_horizon_s: float
) -> NDArray[np.float64]:
    """Interpolate the values ``on_grid`` (N, N_GRID + 1) at horizons (N, J) in seconds. Return float64 of shape (N, J).

    Each row of values is interpolated at its own row of horizons.
    """
    at = np.log1p(horizon_s / _MINUTE_S) / np.log1p(max_horizon_s / _MINUTE_S) * N_GRID
    low = np.clip(at.astype(np.int64), 0, N_GRID - 1)
    before, after = (np.take_along_axis(on_grid, i, 1).astype(np.float64) for i in (low, low + 1))
    return np.asarray(before + (after - before) * np.clip(at - low, 0.0, 1.0))


def counts_at(value_now: float, growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative counts (1 + N(now)) 2^y - 1 for the growth y, float64 with the shape of ``growth``.

    Counts are never below N(now) and always finite.
    """
    return np.maximum((1.0 + value_now) * np.exp2(np.minimum(growth, MAX_GROWTH)) - 1.0, value_now)
