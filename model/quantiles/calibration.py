"""Split-conformal calibration of the 80 % interval, by age and horizon.

A validation window that is later than the training data decides how far each half of the interval is stretched from the median: so far
that it misses a tenth of the outcomes on its side. The stretch of the upper half is the 0.9 quantile of (y - median) / (q0.9 - median),
with the finite-sample correction of split conformal prediction. The lower half works the same way.
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
"""Row of cold starts: forecasts made before anything was observed."""
N_ROWS: Final = COLD + 1
N_COLUMNS: Final = len(HORIZON_EDGES_H) + 1
_MIN_SAMPLES: Final = 150
_MISS: Final = 0.1
"""Share of outcomes that may lie beyond each end of the interval."""
_STRETCH_RANGE: Final = (0.2, 5.0)
_MIN_HALF_WIDTH: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """Stretch factors (N_ROWS, N_COLUMNS, 2) float64 of the lower and the upper half, by age bucket (and COLD) and horizon bucket."""

    stretch: NDArray[np.float64]

    @staticmethod
    def identity() -> Calibration:
        """The calibration that changes no interval."""
        return Calibration(np.ones((N_ROWS, N_COLUMNS, 2)))

    @staticmethod
    def fit(
        age_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        quantiles: NDArray[np.float64],
        growth: NDArray[np.float64],
    ) -> Calibration:
        """Fit on n outcomes: (n,) each, ``quantiles`` (n, 3); growth in log2 units. Buckets with few outcomes use those of neighbours."""
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
        """Stretch growth quantiles (N, J, 3) at horizons (N, J), each by its own bucket as in ``fit``; never below 0."""
        factor = self.stretch[calibration_row(age_s, cold)[:, None], calibration_column(horizon_s)]
        low, median, high = np.moveaxis(quantiles, -1, 0)
        low = np.maximum(median - (median - low) * factor[..., 0], 0.0)
        return np.stack([low, median, median + (high - median) * factor[..., 1]], axis=-1)

    def on_grid(self, age_s: NDArray[np.float64], cold: NDArray[np.bool_], max_horizon_s: float) -> NDArray[np.float64]:
        """Stretch at every grid horizon, (N, N_GRID + 1, 2), interpolated linearly in log horizon between the middles of the buckets."""
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
        """This calibration with its stretch multiplied by ``factors`` of the same shape, each > 0."""
        return Calibration(self.stretch * factors)

    def to_json(self) -> dict[str, Any]:
        """As plain lists, with the bucket edges for human readers of the file."""
        return {"age_edges_h": AGE_EDGES_H, "horizon_edges_h": HORIZON_EDGES_H, "stretch": self.stretch.tolist()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """Inverse of ``to_json``."""
        return Calibration(np.array(data["stretch"], dtype=np.float64))


def calibration_row(age_s: NDArray[np.float64], cold: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Row of each forecast in the stretch table: the bucket of its age, or COLD."""
    return np.where(cold, COLD, np.searchsorted(AGE_EDGES_H, age_s / 3600, side="right"))


def calibration_column(horizon_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Column of each horizon in the stretch table: its bucket."""
    return np.searchsorted(HORIZON_EDGES_H, horizon_s / 3600, side="right")


def _conformal(scores: NDArray[np.float64]) -> float:
    if not len(scores):
        return 1.0
    level = min(1.0, (1 - _MISS) * (len(scores) + 1) / len(scores))
    return float(np.clip(np.quantile(scores, level, method="higher"), *_STRETCH_RANGE))
