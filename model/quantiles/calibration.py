"""Split-conformal calibration of the 80 % interval, by age and horizon.

A validation window after the training data determines how far each half of the interval is stretched away from the
median. Each half is stretched so far that a tenth of the outcomes miss on its side. The stretch of the upper half is
the 0.9 quantile of (y - median) / (q0.9 - median), where y is the outcome. The finite-sample correction of split
conformal prediction is applied. The lower half is treated in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import grid_s

AGE_EDGES_H: Final = (0.5, 2.0, 8.0, 20.0, 36.0, 72.0, 168.0)
HORIZON_EDGES_H: Final = (0.5, 2.0, 8.0, 18.0, 36.0, 60.0, 96.0)
COLD: Final = len(AGE_EDGES_H) + 1
"""Row of the stretch table for cold starts, which are forecasts made before anything was observed."""
N_ROWS: Final = COLD + 1
N_COLUMNS: Final = len(HORIZON_EDGES_H) + 1
_MIN_SAMPLES: Final = 150
_MISS: Final = 0.1
"""Fraction of outcomes that may lie beyond each end of the interval."""
_STRETCH_RANGE: Final = (0.2, 5.0)
_MIN_HALF_WIDTH: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """Stretch factors of the lower half and the upper half of the interval.

    ``stretch`` (N_ROWS, N_COLUMNS, 2) float64 has one row per age bucket, and a last row for cold starts. The table
    has one column per horizon bucket.
    """

    stretch: NDArray[np.float64]

    @staticmethod
    def identity() -> Calibration:
        """Return the calibration that changes no interval."""
        return Calibration(np.ones((N_ROWS, N_COLUMNS, 2)))

    @staticmethod
    def fit(
        age_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        quantiles: NDArray[np.float64],
        growth: NDArray[np.float64],
    ) -> Calibration:
        """Fit on n outcomes.

        Every argument has shape (n,) except ``quantiles`` (n, 3). Growth is in log2 units. If a bucket has too few
        outcomes, the bucket also uses the outcomes of neighbouring buckets.
        """
        low, median, high = quantiles.T
        scores = np.stack(
            [
                (median - growth) / np.maximum(median - low, _MIN_HALF_WIDTH),
                (growth - median) / np.maximum(high - median, _MIN_HALF_WIDTH),
            ]
        )
        rows, columns = calibration_row(age_s, cold), calibration_column(horizon_s)
        stretch = np.ones((N_ROWS, N_COLUMNS, 2))
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
                for side in range(2):
                    stretch[r, c, side] = _conformal(scores[side, near])
        return Calibration(stretch)

    def apply(
        self,
        age_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        quantiles: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Stretch the growth quantiles (N, J, 3) at the horizons (N, J). The result is never below 0.

        Each quantile is stretched by the factor of its bucket. The buckets are chosen as in ``fit``.
        """
        factor = self.stretch[calibration_row(age_s, cold)[:, None], calibration_column(horizon_s)]
        low, median, high = np.moveaxis(quantiles, -1, 0)
        low = np.maximum(median - (median - low) * factor[..., 0], 0.0)
        return np.stack([low, median, median + (high - median) * factor[..., 1]], axis=-1)

    def on_grid(self, age_s: NDArray[np.float64], cold: NDArray[np.bool_], max_horizon_s: float) -> NDArray[np.float64]:
        """Return the stretch at every grid horizon, (N, N_GRID + 1, 2).

        Between the middles of the horizon buckets, the stretch is interpolated linearly in log horizon.
        """
        edges = np.array(HORIZON_EDGES_H)
        middles = np.log(np.concatenate([[edges[0] / 2], np.sqrt(edges[:-1] * edges[1:]), [edges[-1] * 1.3]]))
        log_horizon = np.log(np.maximum(grid_s(max_horizon_s) / 3600, 1e-3))
        by_row = np.stack(
            [
                np.stack([np.interp(log_horizon, middles, self.stretch[r, :, side]) for side in range(2)], axis=-1)
                for r in range(N_ROWS)
            ]
        )
        return by_row[calibration_row(age_s, cold)]

    def times(self, factors: NDArray[np.float64]) -> Calibration:
        """Return this calibration with its stretch multiplied by ``factors``. ``factors`` has the shape of ``stretch`` and is > 0."""
        return Calibration(self.stretch * factors)

    def to_json(self) -> dict[str, Any]:
        """Return the stretch as plain lists. The bucket edges are included for human readers of the file."""
        return {"age_edges_h": AGE_EDGES_H, "horizon_edges_h": HORIZON_EDGES_H, "stretch": self.stretch.tolist()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """Rebuild the calibration that ``to_json`` returned."""
        return Calibration(np.array(data["stretch"], dtype=np.float64))


def calibration_row(age_s: NDArray[np.float64], cold: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the row of each forecast in the stretch table: the bucket of its age, or COLD."""
    return np.where(cold, COLD, np.searchsorted(AGE_EDGES_H, age_s / 3600, side="right"))


def calibration_column(horizon_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of each horizon in the stretch table. The column is the number of the horizon's bucket."""
    return np.searchsorted(HORIZON_EDGES_H, horizon_s / 3600, side="right")


def _conformal(scores: NDArray[np.float64]) -> float:
    if not len(scores):
        return 1.0
    level = min(1.0, (1 - _MISS) * (len(scores) + 1) / len(scores))
    return float(np.clip(np.quantile(scores, level, method="higher"), *_STRETCH_RANGE))
