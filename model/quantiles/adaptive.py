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

The first outcomes of a term move it less, in proportion to how many there were: a few videos are no evidence. A state is that of one
client's videos, and moves that client's intervals only. Where there are many clients, one who has no outcomes of its own starts
from the median over all (``agreed``), which none of them can move past the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.calibration import N_COLUMNS, N_ROWS

MISS: Final = 0.1
"""Share of outcomes that may lie beyond each end of the interval."""
STEPS: Final = (0.006, 0.008, 0.016)
"""Moves of the terms of all, of a horizon, of a cell."""
LIMIT: Final = float(np.log(5.0))
"""Largest |log stretch|."""
RAMP: Final = 50
"""Outcomes of a term from which its steps are whole."""
VOTERS: Final = 5
"""States of at least ``RAMP`` outcomes without which nothing is agreed."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Log stretch of the lower and the upper half: ``overall`` (2,), ``by_horizon`` (N_COLUMNS, 2), ``by_cell`` (N_ROWS, N_COLUMNS, 2).

    ``outcomes``: how many it has learned from; ``seen`` (N_ROWS, N_COLUMNS) int64, the same by cell.
    """

    overall: NDArray[np.float64]
    by_horizon: NDArray[np.float64]
    by_cell: NDArray[np.float64]
    outcomes: int = 0
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros((N_ROWS, N_COLUMNS), np.int64))

    @staticmethod
    def new() -> Adaptive:
        """Knows no outcome, and leaves every interval as it is."""
        return Adaptive(np.zeros(2), np.zeros((N_COLUMNS, 2)), np.zeros((N_ROWS, N_COLUMNS, 2)))

    def factors(self) -> NDArray[np.float64]:
        """Stretch of every cell, (N_ROWS, N_COLUMNS, 2) float64; exactly 1 before any outcome."""
        return np.exp(self.logs())

    def logs(self) -> NDArray[np.float64]:
        """The logarithm of ``factors``."""
        return np.clip(self.overall + self.by_horizon + self.by_cell, -LIMIT, LIMIT)

    def over(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """``factors`` for who starts from the logarithms ``base`` of that shape: they fade as outcomes come in."""
        return np.exp(np.clip(self.logs() + base * (RAMP / (RAMP + self.outcomes)), -LIMIT, LIMIT))

    def learned(self, rows: NDArray[np.int64], columns: NDArray[np.int64], reaches: NDArray[np.float64]) -> Adaptive:
        """After n more outcomes, in their order.

        Args:
            rows: (n,) as of ``calibration_row``.
            columns: (n,) as of ``calibration_column``.
            reaches: (n, 2) how far below and above the median each outcome lay, in half-widths of the interval *without*
                this stretch; negative or 0 on the other side.
        """
        overall, by_horizon, by_cell = self.overall.copy(), self.by_horizon.copy(), self.by_cell.copy()
        seen = self.seen.copy()
        in_column, in_all = seen.sum(0), int(seen.sum())
        for row, column, reach in zip(rows.tolist(), columns.tolist(), reaches, strict=True):
            now = overall + by_horizon[column] + by_cell[row, column]
            move = (reach > np.exp(np.clip(now, -LIMIT, LIMIT))) - MISS
            # At the limit nothing piles up that would have to be undone first.
            move[(np.abs(now) >= LIMIT) & (now * move > 0)] = 0.0
            seen[row, column] += 1
            in_column[column] += 1
            in_all += 1
            overall += STEPS[0] * min(1.0, in_all / RAMP) * move
            by_horizon[column] += STEPS[1] * min(1.0, in_column[column] / RAMP) * move
            by_cell[row, column] += STEPS[2] * min(1.0, seen[row, column] / RAMP) * move
        return Adaptive(overall, by_horizon, by_cell, self.outcomes + len(rows), seen)

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return {
            "overall": self.overall.tolist(),
            "by_horizon": self.by_horizon.tolist(),
            "by_cell": self.by_cell.tolist(),
            "outcomes": self.outcomes,
            "seen": self.seen.tolist(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Adaptive:
        """Inverse of ``to_json``."""
        overall, by_horizon, by_cell = (
            np.array(data[name], dtype=np.float64) for name in ("overall", "by_horizon", "by_cell")
        )
        # An earlier release kept no count by cell.
        seen = np.array(data.get("seen", np.zeros((N_ROWS, N_COLUMNS))), dtype=np.int64)
        return Adaptive(overall, by_horizon, by_cell, int(data["outcomes"]), seen)


def agreed(states: Sequence[Adaptive]) -> NDArray[np.float64]:
    """Log stretch that most of several clients' states have reached, (N_ROWS, N_COLUMNS, 2); 0 where too few have outcomes.

    The median, in which the bundle as it was trained has a vote.
    """
    voters = [state.logs() for state in states if state.outcomes >= RAMP]
    neutral = np.zeros((N_ROWS, N_COLUMNS, 2))
    if len(voters) < VOTERS:
        return neutral
    median: NDArray[np.float64] = np.median(np.stack([*voters, neutral]), axis=0)
    return median


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
