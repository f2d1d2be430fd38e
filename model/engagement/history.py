"""What is known of one video's engagement: the histogram, and nothing else.

A history holds, for every engagement type, either increments per age bin (the type is fed by *events*) or the
largest cumulative value seen in each bin (fed by *counters*). Both kinds are commutative under arrival
order: increments add, cumulative values take the maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["events", "counters"]


@dataclass(frozen=True, slots=True)
class Series:
    """One type's cells: ``bins`` (n,) int64 strictly increasing, ``values`` (n,) int64 >= 0.

    ``values`` are increments in mode "events" and cumulative totals in mode "counters" (not necessarily
    monotone: a platform may correct downwards, and the running maximum stands).
    """

    mode: Mode
    bins: NDArray[np.int64]
    values: NDArray[np.int64]

    def cumulative(self) -> NDArray[np.int64]:
        """Cumulative count at the end of each of ``bins``, (n,) int64, non-decreasing."""
        if self.mode == "events":
            return np.cumsum(self.values)
        return np.maximum.accumulate(self.values)

    def total(self) -> int:
        """The count now: the sum of increments, or the largest cumulative value."""
        return int(self.cumulative()[-1]) if len(self.bins) else 0


@dataclass(frozen=True, slots=True)
class History:
    """Engagement of one video, by type; a type that is absent was never observed.

    ``reach`` maps a bin to the summed audience of the accounts that acted in it (0 where unknown).
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    reach: Mapping[int, int] = field(default_factory=dict)

    def totals(self) -> dict[str, int]:
        """Current cumulative count of every observed type."""
        return {kind: series.total() for kind, series in self.series.items()}

    @staticmethod
    def from_cells(
        modes: Mapping[str, Mode],
        cells: Iterable[tuple[int, str, int]],
        reach: Mapping[int, int] | None = None,
    ) -> History:
        """Build a history from (bin, type, value) cells in any order; each (bin, type) at most once."""
        by_type: dict[str, list[tuple[int, int]]] = {kind: [] for kind in modes}
        for index, kind, value in cells:
            by_type[kind].append((index, value))
        series = {}
        for kind, pairs in by_type.items():
            pairs.sort()
            array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            series[kind] = Series(modes[kind], array[:, 0].copy(), array[:, 1].copy())
        return History(series, dict(reach or {}))
