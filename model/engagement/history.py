"""The histogram of one video's engagement. The model knows a video's engagement only in this form.

For each engagement type, a history holds one of two things. If the type comes from *events*, it holds the increment
in each age bin. If the type comes from *counters*, it holds the largest cumulative value that was seen in each bin.
Neither of them depends on the order in which rows arrive. Increments are added, and cumulative values are combined by
their maximum.
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
    """The cells of one type.

    ``values`` are increments in mode "events" and cumulative totals in mode "counters". Totals may decrease, because
    a platform may correct them downwards. In this case, the running maximum is used.

    Attributes:
        mode: "events" or "counters".
        bins: (n,) int64, strictly increasing.
        values: (n,) int64 >= 0.
    """

    mode: Mode
    bins: NDArray[np.int64]
    values: NDArray[np.int64]

    def cumulative(self) -> NDArray[np.int64]:
        """Return the cumulative count at the end of each of ``bins``, (n,) int64, non-decreasing."""
        if self.mode == "events":
            return np.cumsum(self.values)
        return np.maximum.accumulate(self.values)

    def total(self) -> int:
        """Return the current count: the sum of the increments, or the largest cumulative value."""
        return int(self.cumulative()[-1]) if len(self.bins) else 0


@dataclass(frozen=True, slots=True)
class Readings:
    """The readings of one signal, such as a rank: a number that may rise and fall.

    Attributes:
        bins: (n,) int64, strictly increasing.
        values: (n,) float64, the newest reading of each bin. If several readings have the same time, it is the largest.
    """

    bins: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class History:
    """Engagement of one video by type. A type that is absent was never observed.

    ``reach`` maps a bin to the summed audience of the accounts that acted in the bin. An unknown audience is 0.
    ``signals`` maps a signal's name to its readings.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    reach: Mapping[int, int] = field(default_factory=dict)
    signals: Mapping[str, Readings] = field(default_factory=dict)

    def totals(self) -> dict[str, int]:
        """Return the current cumulative count of every observed type."""
        return {kind: series.total() for kind, series in self.series.items()}

    @staticmethod
    def from_cells(
        modes: Mapping[str, Mode],
        cells: Iterable[tuple[int, str, int]],
        reach: Mapping[int, int] | None = None,
    ) -> History:
        """Build a history from (bin, type, value) cells in any order. Each (bin, type) may occur once."""
        by_type: dict[str, list[tuple[int, int]]] = {kind: [] for kind in modes}
        for index, kind, value in cells:
            by_type[kind].append((index, value))
        series = {}
        for kind, pairs in by_type.items():
            pairs.sort()
            array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            series[kind] = Series(modes[kind], array[:, 0].copy(), array[:, 1].copy())
        return History(series, dict(reach or {}))
