"""Adaptive conformal calibration: intervals follow the coverage of the outcomes that have come in.

What is split-conformal on a window of the past drifts with the traffic. Here the stretch of each half of the interval is
itself tracked (the quantile tracking of Angelopoulos, Candes and Tibshirani, 2023, the stable form of Gibbs and Candes' ACI
of 2021): after each outcome the logarithm of the stretch moves by

    step * (missed - 0.1)

so a miss widens by nine times what a hit narrows, and it comes to rest where a tenth is missed on that side. Whether an outcome
missed is asked of the stretch of *today*, not of that at the forecast: outcomes come in a horizon late, and correcting
for what has long been corrected makes a controller swing.

The logarithm is a sum of three terms, of all outcomes, of a horizon's, and of a cell's (age and horizon), each moved by the same
outcome. A cell that sees few outcomes so has what is common to all, and its own term still takes it to its own coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.calibration import N_COLUMNS, N_ROWS

MISS: Final = 0.1
"""Share of outcomes that may lie beyond each end of the interval."""
STEPS: Final = (0.006, 0.008, 0.016)
"""Moves of the terms of all, of a horizon, of a cell."""
LIMIT: Final = float(np.log(5.0))
"""Largest |log stretch|."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Log stretch of the lower and the upper half: ``overall`` (2,), ``by_horizon`` (N_COLUMNS, 2), ``by_cell`` (N_ROWS, N_COLUMNS, 2).

    ``outcomes``: how many it has learned from.
    """

    overall: NDArray[np.float64]
    by_horizon: NDArray[np.float64]
    by_cell: NDArray[np.float64]
    outcomes: int = 0

    @staticmethod
    def new() -> Adaptive:
        """Knows no outcome, and leaves every interval as it is."""
        return Adaptive(np.zeros(2), np.zeros((N_COLUMNS, 2)), np.zeros((N_ROWS, N_COLUMNS, 2)))

    def factors(self) -> NDArray[np.float64]:
        """Stretch of every cell, (N_ROWS, N_COLUMNS, 2) float64; exactly 1 before any outcome."""
        return np.exp(np.clip(self.overall + self.by_horizon + self.by_cell, -LIMIT, LIMIT))

    def learned(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], reaches: NDArray[np.float64]
    ) -> Adaptive:  # fmt: skip
        """After n more outcomes, in their order.

        Args:
            rows: (n,) as of ``calibration.row_of``.
            columns: (n,) as of ``calibration.column_of``.
            reaches: (n, 2) how far below and above the median each outcome lay, in half-widths of the interval *without*
                this stretch; negative or 0 on the other side.
        """
        overall, by_horizon, by_cell = self.overall.copy(), self.by_horizon.copy(), self.by_cell.copy()
        for row, column, reach in zip(rows.tolist(), columns.tolist(), reaches, strict=True):
            now = overall + by_horizon[column] + by_cell[row, column]
            move = (reach > np.exp(np.clip(now, -LIMIT, LIMIT))) - MISS
            # At the limit nothing piles up that would have to be undone first.
            move[(np.abs(now) >= LIMIT) & (now * move > 0)] = 0.0
            overall += STEPS[0] * move
            by_horizon[column] += STEPS[1] * move
            by_cell[row, column] += STEPS[2] * move
        return Adaptive(overall, by_horizon, by_cell, self.outcomes + len(rows))

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return {
            "overall": self.overall.tolist(),
            "by_horizon": self.by_horizon.tolist(),
            "by_cell": self.by_cell.tolist(),
            "outcomes": self.outcomes,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Adaptive:
        """Inverse of ``to_json``."""
        overall, by_horizon, by_cell = (
            np.array(data[name], dtype=np.float64) for name in ("overall", "by_horizon", "by_cell")
        )
        return Adaptive(overall, by_horizon, by_cell, int(data["outcomes"]))


def reaches(
    growth: NDArray[np.float64], quantiles: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far outcomes lay from the median, in half-widths without the stretch, (n, 2).

    Args:
        growth: (n,) outcomes, log2 units.
        quantiles: (n, 3) as forecast, growth at q0.1, q0.5, q0.9.
        factors: (n, 2) the stretch that was in them.
    """
    low, median, high = quantiles.T
    beyond = np.stack([median - growth, growth - median], axis=1)
    half = np.stack([median - low, high - median], axis=1)
    # Of an interval without width any outcome beyond the median is missed, whatever the stretch.
    ratio: NDArray[np.float64] = np.where(beyond > 0, np.inf, 0.0)
    np.divide(beyond, half, out=ratio, where=half > 0)
    return ratio * factors
