"""Makes forecast queries with known outcomes from a data set, for evaluation.

A query asks at ``now`` for the metric at a later time.

    counters    ``now`` is the time of the newest snapshot in the 24 hours up to the wanted age. The outcome is the
                snapshot nearest to the wanted horizon, at most TOLERANCE_H hours away from it. Both snapshots are
                real observations, never interpolations.
    events      Events are observed continuously. So ``now`` and the time of the outcome are exactly as wanted.

A video with count 0 at ``now`` gives no query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed, snapshot_rows
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.rows import rows_until

TOLERANCE_H: Final = 6.0
"""Maximum difference in hours between the wanted horizon and the snapshot that is the outcome."""
_FRESH_US: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Queries:
    """n queries.

    ``video`` (n,) int64: index of the video.
    ``now_us`` and ``horizon_us`` (n,) int64: time of the query and horizon in microseconds.
    ``cell`` (n,): name of the query's cell of age and horizon.
    ``pairs``: the queries as pairs with their true growth.
    """

    video: NDArray[np.int64]
    now_us: NDArray[np.int64]
    horizon_us: NDArray[np.int64]
    cell: NDArray[np.str_]
    pairs: Pairs

    def take(self, rows: NDArray[np.int64]) -> Queries:
        """Return the queries that ``rows`` selects."""
        p = self.pairs
        pairs = Pairs(p.age_s[rows], p.horizon_s[rows], p.value_now[rows], p.growth[rows])
        return Queries(self.video[rows], self.now_us[rows], self.horizon_us[rows], self.cell[rows], pairs)


def cut_queries(
    observed: Observed,
    video: NDArray[np.int64],
    ages_h: Sequence[float],
    horizons_h: Sequence[float],
    until_us: int,
    tolerance_h: float = TOLERANCE_H,
) -> Queries:
    """Return the queries of the given videos whose outcome was observed up to ``until_us``.

    For counters, the outcome's snapshot is at most ``tolerance_h`` hours away from the wanted horizon.
    """
    parts = []
    published = observed.data.published_us[video]
    for age in ages_h:
        at = published + int(age * HOUR_US)
        for horizon in horizons_h:
            if observed.continuous:
                now, target = at, at + int(horizon * HOUR_US)
                fine = (observed.count_at(video, now) > 0) & (target <= until_us)
            else:
                now, target, fine = _snapshots(
                    observed, video, at, int(horizon * HOUR_US), until_us, int(tolerance_h * HOUR_US)
                )
            name = f"age{age:g}h+{horizon:g}h"
            parts.append((video[fine], now[fine], (target - now)[fine], np.full(int(fine.sum()), name, dtype="<U32")))
    videos, now, horizon_us, cell = (np.concatenate(column) for column in zip(*parts, strict=True))
    value_now, value = observed.count_at(videos, now), observed.count_at(videos, now + horizon_us)
    pairs = Pairs(
        (now - observed.data.published_us[videos]) / SECOND_US,
        horizon_us / SECOND_US,
        value_now,
        np.log2((1 + value) / (1 + value_now)),
    )
    return Queries(videos, now, horizon_us, cell, pairs)


def _snapshots(
    observed: Observed,
    video: NDArray[np.int64],
    at: NDArray[np.int64],
    horizon_us: int,
    until_us: int,
    tolerance_us: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    rows = snapshot_rows(observed.metric)
    times = observed.metric.time_us
    if not len(rows):
        return at, at, np.zeros(len(at), dtype=bool)

    def last(limit: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(rows, rows_until(observed.metric, video, limit)) - 1

    first = np.searchsorted(rows, observed.metric.offsets[video])
    newest = last(at)
    fine = (newest >= first) & (at - times[rows[np.maximum(newest, 0)]] < _FRESH_US)
    now = np.where(fine, times[rows[np.maximum(newest, 0)]], at)
    before = last(np.minimum(now + horizon_us, until_us))
    after = np.minimum(before + 1, last(np.minimum(now + horizon_us + tolerance_us, until_us)))
    gaps = [np.abs(times[rows[np.maximum(i, 0)]] - now - horizon_us) for i in (before, after)]
    best = np.where(gaps[0] <= gaps[1], before, after)
    fine &= (best > newest) & (np.minimum(gaps[0], gaps[1]) <= tolerance_us)
    return now, np.where(fine, times[rows[np.maximum(best, 0)]], now), fine


@dataclass(frozen=True, slots=True)
class Pairs:
    """n pairs of a video at one time and a horizon. All arrays are (n,) float64.

    ``age_s`` and ``horizon_s``: seconds >= 0.
    ``value_now``: a count >= 0.
    ``growth``: growth in log2 units, NaN where unknown.

    A baseline's ``fit`` ignores pairs of unknown growth. A baseline's ``predict`` never reads the
    growth.
    """

    age_s: NDArray[np.float64]
    horizon_s: NDArray[np.float64]
    value_now: NDArray[np.float64]
    growth: NDArray[np.float64]

    def __post_init__(self) -> None:
        shapes = {self.age_s.shape, self.horizon_s.shape, self.value_now.shape, self.growth.shape}
        if len(shapes) != 1 or self.age_s.ndim != 1:
            raise ValueError(f"the arrays of pairs must have the same length, not {sorted(shapes)}")

    def __len__(self) -> int:
        return len(self.age_s)

    def known(self) -> Pairs:
        """Return the pairs whose growth is known.

        Raises:
            ValueError: no pair has a known growth.
        """
        rows = np.isfinite(self.growth)
        if not rows.any():
            raise ValueError("no pair to fit on has a known growth")
        return Pairs(self.age_s[rows], self.horizon_s[rows], self.value_now[rows], self.growth[rows])
