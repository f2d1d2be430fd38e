"""Adaptive conformal calibration: intervals follow the coverage of recent outcomes.

A split-conformal calibration on a past window loses its coverage as the traffic drifts. Here the stretch of each half of the interval is
tracked online (quantile tracking of Angelopoulos, Candes and Tibshirani, 2023, the stable form of Gibbs and Candes' ACI of 2021). After
each outcome the logarithm of the stretch moves by

    step * (missed - 0.1)

So a miss widens the interval nine times as much as a hit narrows it, and the stretch settles where a tenth of the outcomes miss on that
side. Whether an outcome missed is judged with the *current* stretch, not with the stretch in the forecast: an outcome arrives one
horizon late, and to correct an error that was already corrected makes a controller oscillate.

The logarithm is a sum of three terms: of all outcomes, of one horizon, and of one cell (age and horizon). Each outcome moves all
three. So a cell with few outcomes uses what all have in common, and its own term still leads it to its own coverage.

The first outcomes of a term move it less, in proportion to their number, because a few videos are no evidence. A state belongs to one
client's videos and moves only that client's intervals. A client without outcomes of its own starts from the median over all clients
(``median_logs``), which no single client can move past the others.
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
"""Step sizes of the three terms: overall, horizon, cell."""
LIMIT: Final = float(np.log(5.0))
"""Largest |log stretch|."""
RAMP: Final = 50
"""Number of outcomes from which a term moves by full steps."""
VOTERS: Final = 5
"""Number of states with at least ``RAMP`` outcomes that ``median_logs`` needs."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Log stretch of the lower and the upper half: ``overall`` (2,), ``by_horizon`` (N_COLUMNS, 2), ``by_cell`` (N_ROWS, N_COLUMNS, 2).

    ``outcomes`` is the number of outcomes it has learned from; ``seen`` (N_ROWS, N_COLUMNS) int64 is their number by cell.
    """

    overall: NDArray[np.float64]
    by_horizon: NDArray[np.float64]
    by_cell: NDArray[np.float64]
    outcomes: int = 0
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros((N_ROWS, N_COLUMNS), np.int64))

    @staticmethod
    def new() -> Adaptive:
        """The state before any outcome, which changes no interval."""
        return Adaptive(np.zeros(2), np.zeros((N_COLUMNS, 2)), np.zeros((N_ROWS, N_COLUMNS, 2)))

    def factors(self) -> NDArray[np.float64]:
        """Stretch of every cell, (N_ROWS, N_COLUMNS, 2) float64; exactly 1 before any outcome."""
        return np.exp(self.logs())

    def logs(self) -> NDArray[np.float64]:
        """The logarithm of ``factors``."""
        return np.clip(self.overall + self.by_horizon + self.by_cell, -LIMIT, LIMIT)

    def over(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """``factors`` of a client that started from the logarithms ``base`` of the same shape, which fade as outcomes arrive."""
        return np.exp(np.clip(self.logs() + base * (RAMP / (RAMP + self.outcomes)), -LIMIT, LIMIT))

    def learned(self, rows: NDArray[np.int64], columns: NDArray[np.int64], reaches: NDArray[np.float64]) -> Adaptive:
        """The state after n more outcomes, in their order.

        Args:
            rows: (n,) as from ``calibration_row``.
            columns: (n,) as from ``calibration_column``.
            reaches: (n, 2) how far below and above the median each outcome lay, in half-widths of the interval *without* this
                stretch; negative or 0 on the other side. See ``reaches``.
        """
        overall, by_horizon, by_cell = self.overall.copy(), self.by_horizon.copy(), self.by_cell.copy()
        seen = self.seen.copy()
        in_column, in_all = seen.sum(0), int(seen.sum())
        for row, column, reach in zip(rows.tolist(), columns.tolist(), reaches, strict=True):
            now = overall + by_horizon[column] + by_cell[row, column]
            move = (reach > np.exp(np.clip(now, -LIMIT, LIMIT))) - MISS
            # At the limit a term does not grow further: later moves back would first have to undo it.
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
        # An earlier release stored no counts by cell.
        seen = np.array(data.get("seen", np.zeros((N_ROWS, N_COLUMNS))), dtype=np.int64)
        return Adaptive(overall, by_horizon, by_cell, int(data["outcomes"]), seen)


def median_logs(states: Sequence[Adaptive]) -> NDArray[np.float64]:
    """The median log stretch of several clients' states, (N_ROWS, N_COLUMNS, 2); 0 if too few of them have outcomes.

    The bundle as it was trained counts as one more state.
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
    """How far outcomes lay below and above the median, in half-widths of the unstretched interval, (n, 2).

    Args:
        growth: (n,) outcomes, log2 units.
        quantiles: (n, 3) forecast growth at q0.1, q0.5, q0.9.
        factors: (n, 2) the stretch that these quantiles contain.
    """
    low, median, high = quantiles.T
    beyond = np.stack([median - growth, growth - median], axis=1)
    half = np.stack([median - low, high - median], axis=1)
    # An interval without width misses every outcome beyond the median, whatever the stretch.
    ratio: NDArray[np.float64] = np.where(beyond > 0, np.inf, 0.0)
    np.divide(beyond, half, out=ratio, where=half > 0)
    return ratio * factors
