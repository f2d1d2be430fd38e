"""Split-conformal calibration of the quantiles, by age and horizon.

A validation window after the training data determines how far each quantile is stretched away from the median. The
stretch of the 0.9 quantile is the 0.9 quantile of (y - median) / (q0.9 - median), where y is the outcome. So a tenth
of the outcomes lie above the stretched quantile. The finite-sample correction of split conformal prediction is
applied. Every other quantile is treated in the same way, each at its own level.

Before that, the median itself is moved, so that half of the outcomes lie above it. The unit of this shift is the step
from the median to the next quantile, so that an uncertain median moves further than a certain one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import MEDIAN, N_STEPS, QUANTILES, distances, grid_s, joined, moved

AGE_EDGES_H: Final = (0.5, 2.0, 8.0, 20.0, 36.0, 72.0, 168.0)
HORIZON_EDGES_H: Final = (0.5, 2.0, 8.0, 18.0, 36.0, 60.0, 96.0)
COLD: Final = len(AGE_EDGES_H) + 1
"""Row of the stretch table for cold starts, which are forecasts made before anything was observed."""
N_ROWS: Final = COLD + 1
N_COLUMNS: Final = len(HORIZON_EDGES_H) + 1
_MIN_SAMPLES: Final = 150
BEYOND: Final = np.array([min(level, 1 - level) for level in QUANTILES if level != QUANTILES[MEDIAN]])
"""Fraction of outcomes that lie beyond each quantile except the median, on the side away from the median, (N_STEPS,)."""
STRETCH_RANGE: Final = (0.05, 5.0)
"""Smallest and largest stretch."""
_MIN_DISTANCE: Final = 1e-6
_MAX_SHIFT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Shift of the median, and stretch factors of the quantiles' distances from it.

    Both tables have one row per age bucket, and a last row for cold starts. They have one column per horizon bucket.

    Attributes:
        stretch: (N_ROWS, N_COLUMNS, N_STEPS) float64. The last axis holds the quantiles in order, without the median.
        shift: (N_ROWS, N_COLUMNS) float64 from -1 to 1, in steps from the median to the next quantile.
    """

    stretch: NDArray[np.float64]
    shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros((N_ROWS, N_COLUMNS)))

    @staticmethod
    def identity() -> Calibration:
        """Return the calibration that changes no quantile."""
        return Calibration(np.ones((N_ROWS, N_COLUMNS, N_STEPS)))

    @staticmethod
    def fit(
        age_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        median: NDArray[np.float64],
        steps: NDArray[np.float64],
        growth: NDArray[np.float64],
        shift: NDArray[np.float64] | None = None,
    ) -> Calibration:
        """Fit on n outcomes.

        The arguments have shape (n,) except ``steps`` (n, N_STEPS) and ``shift`` (N_ROWS, N_COLUMNS). Growth is in log2
        units. If a bucket has too few outcomes, the bucket also uses the outcomes of neighbouring buckets. If ``shift``
        is given, only the stretch is fitted.
        """
        distance = np.maximum(distances(steps), _MIN_DISTANCE)
        below, above = distance[:, MEDIAN - 1], distance[:, MEDIAN]
        off = (growth - median) / np.where(growth > median, above, below)
        rows, columns = calibration_row(age_s, cold), calibration_column(horizon_s)
        stretch, shifts = np.ones((N_ROWS, N_COLUMNS, N_STEPS)), np.zeros((N_ROWS, N_COLUMNS))
        for r in range(N_ROWS):
            in_row = rows == r
            for c in range(N_COLUMNS):
                near = in_row & (columns == c)
                if near.sum() < _MIN_SAMPLES:
                    near = in_row & (np.abs(columns - c) <= 1)
                if near.sum() < _MIN_SAMPLES:
                    near = (rows != COLD) & (columns == c) if r != COLD else in_row
                if near.sum() < _MIN_SAMPLES:
                    near = rows != COLD
                if shift is not None:
                    shifts[r, c] = shift[r, c]
                elif near.any():
                    shifts[r, c] = np.clip(np.median(off[near]), -_MAX_SHIFT, _MAX_SHIFT)
                at = shifts[r, c]
                beyond = beyond_median(growth[near], median[near] + at * (above if at > 0 else below)[near])
                stretch[r, c] = _conformal(beyond / distance[near])
        return Calibration(stretch, shifts)

    def apply(
        self,
        age_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        centre: NDArray[np.float64],
        steps: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the mean and the calibrated quantiles (N, J, 1 + len(QUANTILES)) at the horizons (N, J), never below 0.

        ``centre`` (N, J, N_CENTRE) and ``steps`` (N, J, N_STEPS) are the parts of the growth. The median is moved by
        the shift of its bucket, and each distance is stretched by the factor of its bucket. The buckets are chosen as
        in ``fit``.
        """
        at = calibration_row(age_s, cold)[:, None], calibration_column(horizon_s)
        return np.maximum(joined(moved(centre, steps, self.shift[at]), steps, self.stretch[at]), 0.0)

    def on_grid(self, age_s: NDArray[np.float64], cold: NDArray[np.bool_], max_horizon_s: float) -> NDArray[np.float64]:
        """Return the stretch at every grid horizon, (N, N_GRID + 1, N_STEPS).

        Between the middles of the horizon buckets, the stretch is interpolated linearly in log horizon.
        """
        by_row: NDArray[np.float64] = np.matmul(_column_weights(max_horizon_s), self.stretch)
        return by_row[calibration_row(age_s, cold)]

    def shift_on_grid(
        self, age_s: NDArray[np.float64], cold: NDArray[np.bool_], max_horizon_s: float
    ) -> NDArray[np.float64]:
        """Return the shift of the median at every grid horizon, (N, N_GRID + 1), interpolated as the stretch is."""
        by_row: NDArray[np.float64] = np.matmul(self.shift, _column_weights(max_horizon_s).T)
        return by_row[calibration_row(age_s, cold)]

    def times(self, factors: NDArray[np.float64]) -> Calibration:
        """Return this calibration with its stretch multiplied by ``factors``. ``factors`` has the shape of ``stretch`` and is > 0."""
        return Calibration(self.stretch * factors, self.shift)

    def to_json(self) -> dict[str, Any]:
        """Return the shift and the stretch as plain lists. The bucket edges are included for human readers of the file."""
        return {
            "age_edges_h": AGE_EDGES_H,
            "horizon_edges_h": HORIZON_EDGES_H,
            "shift": self.shift.tolist(),
            "stretch": self.stretch.tolist(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """Rebuild the calibration that ``to_json`` returned."""
        return Calibration(np.array(data["stretch"], dtype=np.float64), np.array(data["shift"], dtype=np.float64))


def beyond_median(growth: NDArray[np.float64], median: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far outcomes (n,) lie beyond the median (n,), on the side of each quantile, (n, N_STEPS) float64."""
    sides = np.where(np.arange(N_STEPS) < MEDIAN, -1.0, 1.0)
    out: NDArray[np.float64] = (growth - median)[:, None] * sides
    return out


def calibration_row(age_s: NDArray[np.float64], cold: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the row of each forecast in the stretch table: the bucket of its age, or COLD."""
    return np.where(cold, COLD, np.searchsorted(AGE_EDGES_H, age_s / 3600, side="right"))


def calibration_column(horizon_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of each horizon in the stretch table. The column is the number of the horizon's bucket."""
    return np.searchsorted(HORIZON_EDGES_H, horizon_s / 3600, side="right")


@lru_cache(maxsize=16)
def _column_weights(max_horizon_s: float) -> NDArray[np.float64]:
    """Return the weights of the columns of the stretch table at every grid horizon, (N_GRID + 1, N_COLUMNS)."""
    edges = np.array(HORIZON_EDGES_H)
    middles = np.log(np.concatenate([[edges[0] / 2], np.sqrt(edges[:-1] * edges[1:]), [edges[-1] * 1.3]]))
    log_horizon = np.log(np.maximum(grid_s(max_horizon_s) / 3600, 1e-3))
    columns = [np.interp(log_horizon, middles, column) for column in np.eye(N_COLUMNS)]
    return np.stack(columns, axis=-1)


def _conformal(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the stretch (N_STEPS,) that the scores (n, N_STEPS) ask for."""
    n = len(scores)
    if not n:
        return np.ones(N_STEPS)
    levels = np.minimum(1.0, (1 - BEYOND) * (n + 1) / n)
    found = [np.quantile(column, level, method="higher") for column, level in zip(scores.T, levels, strict=True)]
    out: NDArray[np.float64] = np.clip(np.array(found), *STRETCH_RANGE)
    return out
