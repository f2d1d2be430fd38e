"""The mathematics of the forecast head.

The head gives the mean and quantiles of growth at any horizon. Neither ever decreases with the horizon, and the
quantiles never cross.

Growth over a horizon d is y(d) = log2((1 + N(now + d)) / (1 + N(now))). The network outputs coefficients of ramps
phi_m. Each ramp is 0 at d = 0 and never decreases with d. Eight sums of ramps describe the growth:

    mean     sum a_m phi_m(d)
    median   sum b_m phi_m(d)
    steps    sum c_m phi_m(d),   c >= 0

A step is the distance between two neighbouring quantiles: three steps lie below the median, and three lie above it. So
no quantile lies below the next lower one. Half of the ramps depend on the horizon. The other half depend on the ratio
of the horizon to the video's age, because the popularity of a video decays as a power law of its age.

The mean and the median together are the ``centre``. The centre and the steps stay apart until the intervals are
calibrated, because only the centre says how much a video grows, and only the steps say how certain that is.

If the metric comes from events, there is an additional ramp: the growth that a self-exciting cascade expects
(``model.cascade``). The forecast starts from this ramp, and the coefficients of the centre may be negative to reduce
it. Without this ramp, all coefficients are >= 0. Growth below 0 is raised to 0, and growth below its own value at an
earlier horizon is raised to that value. Both steps keep the quantiles in order.

Calibration moves the median and stretches the distance of each quantile from the median, at each horizon of a fixed grid. A stretched
quantile that would lie inside its inner neighbour is moved to this neighbour. After that, a running maximum makes the
growth non-decreasing again. Between grid points, growth is interpolated linearly in log(1 + d / minute). As a result,
growth starts at 0 and never decreases, and quantiles never cross, at any d.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

QUANTILES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Levels of the quantiles."""
LOW: Final = 1
MEDIAN: Final = 3
HIGH: Final = 5
"""Positions in ``QUANTILES`` of the median and of the ends of the 80 % interval."""
N_CENTRE: Final = 2
"""Number of values of a centre: the mean and the median."""
N_STEPS: Final = len(QUANTILES) - 1
N_PARTS: Final = N_CENTRE + N_STEPS
"""Number of sums of ramps. The centre comes first, then the steps from the lowest to the highest."""
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


def grid_parts(
    coefficients: NDArray[np.float32],
    age_s: NDArray[np.float64],
    max_horizon_s: float,
    expected: NDArray[np.floating] | float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre and the steps of growth on the grid.

    Args:
        coefficients: (N, N_PARTS, N_BASIS) float32: the coefficients a, b and c of the module.
        age_s: (N,) float64, ages at ``now`` in seconds.
        max_horizon_s: longest trained horizon in seconds.
        expected: (N, N_GRID + 1) growth that a cascade expects, in log2 units. This growth is 0 at d = 0 and never
            decreases. Without a cascade, ``expected`` is 0.

    Returns:
        The centre (N, N_GRID + 1, N_CENTRE), which is the mean and the median, and the steps (N, N_GRID + 1, N_STEPS).
        Both are float64 in log2 units. The centre is neither bounded nor monotone yet.
    """
    phi = basis(age_s[:, None], grid_s(max_horizon_s)[None], max_horizon_s, expected)
    # Without optimisation, einsum sums each row in one fixed order, so a row's result does not depend on the batch.
    parts = np.einsum("ngm,nqm->ngq", phi, coefficients.astype(np.float64), optimize=False)
    return parts[..., :N_CENTRE], parts[..., N_CENTRE:]


def moved(centre: NDArray[np.float64], steps: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre (..., N_CENTRE) with its median moved by ``shift`` (...,) times the step next to it on that side."""
    step = np.where(shift > 0, steps[..., MEDIAN], steps[..., MEDIAN - 1])
    return np.stack([centre[..., 0], centre[..., 1] + shift * step], axis=-1)


def distances(steps: NDArray[np.float64], stretch: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the distance of each quantile from the median, (..., N_STEPS) float64, from the lowest to the highest.

    ``steps`` (..., N_STEPS) are the steps. ``stretch`` has the same shape and holds the factor >= 0 of each distance;
    None means factors of 1. No stretched distance is smaller than a distance further inside.
    """
    out = steps.astype(np.float64)
    for at in (1, 0, 4, 5):
        out[..., at] += out[..., at + 1 if at < MEDIAN else at - 1]
    if stretch is not None:
        out *= stretch
        for at in (1, 0, 4, 5):
            np.maximum(out[..., at], out[..., at + 1 if at < MEDIAN else at - 1], out=out[..., at])
    return out


def joined(
    centre: NDArray[np.float64], steps: NDArray[np.float64], stretch: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the mean and the quantiles, (..., 1 + len(QUANTILES)) float64: the mean first, then the quantiles in order.

    The arguments are those of ``grid_parts`` and ``distances``. The quantiles may be negative.
    """
    beyond, median = distances(steps, stretch), centre[..., 1:]
    return np.concatenate(
        [centre[..., :1], median - beyond[..., :MEDIAN], median, median + beyond[..., MEDIAN:]], axis=-1
    )


def grid_growth(
    centre: NDArray[np.float64], steps: NDArray[np.float64], stretch: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the mean and the quantiles of growth on the grid.

    Args:
        centre: (N, N_GRID + 1, N_CENTRE) from ``grid_parts``.
        steps: (N, N_GRID + 1, N_STEPS) from ``grid_parts``.
        stretch: (N, N_GRID + 1, N_STEPS) factors >= 0 of the quantiles' distances. None means factors of 1.

    Returns:
        (N, N_GRID + 1, 1 + len(QUANTILES)) float64 in log2 units: the mean, then the quantiles. The growth is 0 at
        d = 0 and non-decreasing along the grid, and the quantiles are in order.
    """
    growth = joined(centre, steps, stretch)
    np.maximum(growth, 0.0, out=growth)
    return np.maximum.accumulate(growth, axis=1, out=growth)


def growth_at(
    on_grid: NDArray[np.float64], row: NDArray[np.int64], horizon_s: NDArray[np.float64], max_horizon_s: float
) -> NDArray[np.float64]:
    """Interpolate growth on the grid at H horizons of any videos. Return float64 of shape (H, 1 + len(QUANTILES)).

    Args:
        on_grid: (N, N_GRID + 1, 1 + len(QUANTILES)) from ``grid_growth``.
        row: (H,) index of the video of each horizon.
        horizon_s: (H,) horizons in seconds.
        max_horizon_s: longest trained horizon in seconds.
    """
    low, share = grid_position(horizon_s, max_horizon_s)
    before, after = on_grid[row, low], on_grid[row, low + 1]
    out = np.minimum(before + (after - before) * share[:, None], after)
    # Rounding may put a quantile below its lower neighbour.
    out[:, 1:] = np.maximum.accumulate(out[:, 1:], axis=1)
    return out


def on_grid_at(
    on_grid: NDArray[np.floating], horizon_s: NDArray[np.float64], max_horizon_s: float
) -> NDArray[np.float64]:
    """Interpolate the values ``on_grid`` (N, N_GRID + 1) at horizons (N, J) in seconds. Return float64 of shape (N, J).

    Each row of values is interpolated at its own row of horizons.
    """
    low, share = grid_position(horizon_s, max_horizon_s)
    before, after = (np.take_along_axis(on_grid, i, 1).astype(np.float64) for i in (low, low + 1))
    return np.asarray(before + (after - before) * share)


def grid_position(
    horizon_s: NDArray[np.float64], max_horizon_s: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the index of the grid point before each horizon, and the share of the way to the next grid point."""
    at = np.log1p(horizon_s / _MINUTE_S) / np.log1p(max_horizon_s / _MINUTE_S) * N_GRID
    low = np.clip(at.astype(np.int64), 0, N_GRID - 1)
    return low, np.clip(at - low, 0.0, 1.0)


def horizon_at(position: float, max_horizon_s: float) -> float:
    """Return the horizon in seconds at a position on the grid, from 0 to N_GRID. This is the inverse of ``grid_position``."""
    return _MINUTE_S * float(np.expm1(position / N_GRID * np.log1p(max_horizon_s / _MINUTE_S)))


def counts_at(value_now: float, growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative counts (1 + N(now)) 2^y - 1 for the growth y, float64 with the shape of ``growth``.

    Counts are never below N(now) and always finite.
    """
    return np.maximum((1.0 + value_now) * np.exp2(np.minimum(growth, MAX_GROWTH)) - 1.0, value_now)
