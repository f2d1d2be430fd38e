"""Adaptive conformal calibration: the distances of the quantiles follow the coverage of recent outcomes.

A split-conformal calibration is fitted on a past window, so it loses its coverage when the traffic drifts. This
module tracks the stretch of each quantile's distance from the median online. The method is quantile tracking (Angelopoulos, Candes
and Tibshirani, 2023), which is the stable form of ACI (Gibbs and Candes, 2021). After each outcome, the logarithm of
the stretch moves by

    step * (missed - b)

Here b is the fraction of outcomes that lie beyond the quantile, for example 0.1 for the 0.9 quantile. A miss of that
quantile therefore widens the interval nine times as much as a hit narrows it. The stretch settles at the value for
which a tenth of the outcomes lie beyond. An outcome arrives one horizon after its forecast. The outcome is
compared with the *current* stretch, not with the stretch that the forecast used. Otherwise this method would correct
one error several times, and the width would oscillate.

The logarithm is a sum of three terms: one for all outcomes, one for each horizon bucket, and one for each cell (a
pair of age bucket and horizon bucket). Each outcome moves all three terms. So a cell with few outcomes mainly uses
the two terms that it shares with other cells. With more outcomes, the cell's own term corrects the cell's own
coverage.

The first outcomes move a term less, because a few videos are weak evidence. Up to RAMP outcomes, the step grows in
proportion to their number. A state belongs to one client's videos and changes only the intervals of that client. A
client without outcomes starts from the median over all clients (``median_logs``). No single client can move this
median beyond the values of the other clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.calibration import BEYOND, N_COLUMNS, N_ROWS, beyond_median
from model.quantiles.head import MEDIAN, N_STEPS

STEPS: Final = (0.006, 0.008, 0.016)
"""Step sizes of the three terms: all outcomes, horizon, cell."""
LIMIT: Final = float(np.log(5.0))
"""Largest absolute value of the log stretch."""
RAMP: Final = 50
"""Number of outcomes after which a term moves by full steps."""
VOTERS: Final = 5
"""``median_logs`` needs at least this number of states with at least ``RAMP`` outcomes each."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The log stretch of each quantile's distance from the median, as a sum of three terms.

    The last axis of every term holds the quantiles in order, without the median.

    Attributes:
        overall: (N_STEPS,) the term for all outcomes.
        by_horizon: (N_COLUMNS, N_STEPS) the term for each horizon bucket.
        by_cell: (N_ROWS, N_COLUMNS, N_STEPS) the term for each cell.
        outcomes: number of outcomes that the state has learned from.
        seen: (N_ROWS, N_COLUMNS) int64, number of outcomes in each cell.
    """

    overall: NDArray[np.float64]
    by_horizon: NDArray[np.float64]
    by_cell: NDArray[np.float64]
    outcomes: int = 0
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros((N_ROWS, N_COLUMNS), np.int64))

    @staticmethod
    def new() -> Adaptive:
        """Return the state before any outcome. This state changes no quantile."""
        return Adaptive(np.zeros(N_STEPS), np.zeros((N_COLUMNS, N_STEPS)), np.zeros((N_ROWS, N_COLUMNS, N_STEPS)))

    def factors(self) -> NDArray[np.float64]:
        """Return the stretch of every cell, (N_ROWS, N_COLUMNS, N_STEPS) float64. The stretch is exactly 1 before any outcome."""
        return np.exp(self.logs())

    def logs(self) -> NDArray[np.float64]:
        """Return the logarithm of ``factors``."""
        return np.clip(self.overall + self.by_horizon + self.by_cell, -LIMIT, LIMIT)

    def over(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the stretch of every cell for a client that started from the log stretch ``base``.

        ``base`` has the same shape as ``factors``. Its influence fades as outcomes arrive.
        """
        return np.exp(np.clip(self.logs() + base * (RAMP / (RAMP + self.outcomes)), -LIMIT, LIMIT))

    def learned(self, rows: NDArray[np.int64], columns: NDArray[np.int64], reaches: NDArray[np.float64]) -> Adaptive:
        """Return the state after n more outcomes. The outcomes are applied in order.

        Args:
            rows: (n,) rows of the outcomes in the stretch table, from ``calibration_row``.
            columns: (n,) columns of the outcomes in the stretch table, from ``calibration_column``.
            reaches: (n, N_STEPS) how far each outcome lay beyond the median on the side of each quantile, from the
                function ``reaches``. The unit is the quantile's distance from the median *without* this stretch. The
                value is negative or 0 for the quantiles on the other side of the median.
        """
        overall, by_horizon, by_cell = self.overall.copy(), self.by_horizon.copy(), self.by_cell.copy()
        seen = self.seen.copy()
        in_column, in_all = seen.sum(0), int(seen.sum())
        for row, column, reach in zip(rows.tolist(), columns.tolist(), reaches, strict=True):
            now = overall + by_horizon[column] + by_cell[row, column]
            move = (reach > np.exp(np.clip(now, -LIMIT, LIMIT))) - BEYOND
            # At the limit a term stops growing. Otherwise later moves in the other direction would first have to undo the excess.
            move[(np.abs(now) >= LIMIT) & (now * move > 0)] = 0.0
            seen[row, column] += 1
            in_column[column] += 1
            in_all += 1
            overall += STEPS[0] * min(1.0, in_all / RAMP) * move
            by_horizon[column] += STEPS[1] * min(1.0, in_column[column] / RAMP) * move
            by_cell[row, column] += STEPS[2] * min(1.0, seen[row, column] / RAMP) * move
        return Adaptive(overall, by_horizon, by_cell, self.outcomes + len(rows), seen)

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain lists."""
        return {
            "overall": self.overall.tolist(),
            "by_horizon": self.by_horizon.tolist(),
            "by_cell": self.by_cell.tolist(),
            "outcomes": self.outcomes,
            "seen": self.seen.tolist(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Adaptive:
        """Rebuild the state that ``to_json`` returned.

        An earlier release stored one stretch for each half of the interval. All quantiles of a half then start from
        this stretch.
        """
        overall, by_horizon, by_cell = (
            _by_quantile(np.array(data[name], dtype=np.float64)) for name in ("overall", "by_horizon", "by_cell")
        )
        # An earlier release did not store the number of outcomes per cell.
        seen = np.array(data.get("seen", np.zeros((N_ROWS, N_COLUMNS))), dtype=np.int64)
        return Adaptive(overall, by_horizon, by_cell, int(data["outcomes"]), seen)


def median_logs(states: Sequence[Adaptive]) -> NDArray[np.float64]:
    """Return the median log stretch over several clients' states, (N_ROWS, N_COLUMNS, N_STEPS).

    Only states with at least RAMP outcomes are used. If there are fewer than VOTERS such states, the result is 0. The
    unchanged calibration of the bundle (log stretch 0) counts as an additional state in the median.
    """
    voters = [state.logs() for state in states if state.outcomes >= RAMP]
    neutral = np.zeros((N_ROWS, N_COLUMNS, N_STEPS))
    if len(voters) < VOTERS:
        return neutral
    median: NDArray[np.float64] = np.median(np.stack([*voters, neutral]), axis=0)
    return median


def reaches(
    growth: NDArray[np.float64], quantiles: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far outcomes lay beyond the median, on the side of each quantile, (n, N_STEPS).

    The unit is the distance of the unstretched quantile from the median.

    Args:
        growth: (n,) outcomes in log2 units.
        quantiles: (n, len(QUANTILES)) quantiles of forecast growth.
        factors: (n, N_STEPS) the stretch that is contained in ``quantiles``.
    """
    median = quantiles[:, MEDIAN]
    beyond = beyond_median(growth, median)
    distance = np.abs(np.delete(quantiles, MEDIAN, axis=1) - median[:, None])
    # A quantile at the median misses every outcome beyond the median, whatever the stretch is.
    ratio: NDArray[np.float64] = np.where(beyond > 0, np.inf, 0.0)
    np.divide(beyond, distance, out=ratio, where=distance > 0)
    return ratio * factors


def _by_quantile(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(terms, N_STEPS // 2, axis=-1) if terms.shape[-1] == 2 else terms
