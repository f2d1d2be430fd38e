"""The support of the training data: the range of its inputs, and how far its counts grew. Both limit the forecasts.

Growth is log2((1 + N(now + d)) / (1 + N(now))). ``most`` holds the largest growth seen in training, by age, count
and horizon. The limit for a count is the largest growth of all videos with at least that count. So the limit never
rises with the count: small counts double more often than large ones. The mean and the median of a forecast never lie
above ``most``. The upper quantiles lie at most ``margin`` above ``most``. To find ``margin``, the training videos are
divided into two halves. ``margin`` is the median difference between the largest growth of one half and the largest
growth of the other half.

An input is called extrapolated if its age, a count, its pace of growth, or the way in which a type is read (events
or counters) lies outside the training range. Training says nothing about how far such an input grows. So the mean and
the median of its forecast are at most the 0.9 quantile of the growth of training videos of that age. The 80 % interval
of its forecast covers at least the middle 80 % of that growth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.history import Mode
from model.features.summary import count_columns, pace_columns
from model.features.tokens import LOG_AGE_OFFSET_S
from model.quantiles.head import HIGH, LOW, MEDIAN, N_GRID, grid_s

Floats = NDArray[np.float32]

_AGE_STEP: Final = 0.5
_AGE_FROM: Final = float(np.log2(LOG_AGE_OFFSET_S))
N_AGES: Final = 44
"""Number of age buckets. Each bucket covers half a doubling of (age + 1 minute). The last bucket starts at about 4 years."""
N_LEVELS: Final = 32
"""Number of levels of log2(1 + count). Each level is one doubling."""
MIN_VIDEOS: Final = 20
"""Minimum number of videos for computing a largest growth. If there are fewer, videos of the nearest ages and with
lower counts are added."""
_MAX_MARGIN: Final = 1.0
_COUNT_SLACK: Final = 1.0
"""Tolerance for counts, in log2 units. A count is extrapolated only if it lies further than this outside the training range."""
_PACE_SLACK: Final = 0.25
"""Tolerance for paces, as a fraction of the training range. A pace is measured in many ways, and one of them is often
slightly outside the range."""
_SOURCES: Final[tuple[Mode, ...]] = ("events", "counters")


def support_row(age_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the age bucket of each age, (N,) int64 in 0 .. N_AGES - 1. ``age_s`` (N,) is in seconds."""
    at = (np.log2(np.maximum(age_s, 0) + LOG_AGE_OFFSET_S) - _AGE_FROM) / _AGE_STEP
    return np.clip(at.astype(np.int64), 0, N_AGES - 1)


def support_level(count: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the level of each count >= 0, (N,) int64 in 0 .. N_LEVELS - 1."""
    return np.clip(np.log2(1 + count).astype(np.int64), 0, N_LEVELS - 1)


@dataclass(frozen=True, slots=True)
class Support:
    """The training range, and the growth that was seen in training; see the module.

    The names of the fields are also the names in the bundle's weights.

    Attributes:
        most: (N_AGES, N_LEVELS, N_GRID + 1) float32, largest growth in log2 units. This growth never decreases with
            the horizon.
        usual: (N_AGES, N_GRID + 1, 2) float32, quantiles 0.1 and 0.9 of the growth.
        margin: how far the upper quantiles may lie above ``most``, in log2 units.
        ages: (2,) float32, youngest and oldest age in seconds.
        low: (N_AGES, n_summary) float32, smallest value of each column of the summary.
        high: (N_AGES, n_summary) float32, largest value of each column of the summary.
        sources: (K, 2) bool, whether each type was read as events, and whether it was read as counters.
        shortest: shortest trained horizon in seconds. The growth at a shorter horizon is a share of the
            growth at this horizon. The share is proportional to the increase of log(age + 1 minute).
    """

    most: Floats
    usual: Floats
    margin: float
    ages: Floats
    low: Floats
    high: Floats
    sources: NDArray[np.bool_]
    shortest: float = 0.0

    @staticmethod
    def fit(
        video: NDArray[np.int64],
        age_s: NDArray[np.float64],
        value_now: NDArray[np.float64],
        cold: NDArray[np.bool_],
        summary: Floats,
        horizon_s: NDArray[np.float64],
        growth: NDArray[np.float64],
        sources: NDArray[np.bool_],
        max_horizon_s: float,
        shortest: float = 0.0,
    ) -> Support:
        """Fit on N samples of training videos.

        Args:
            video: (N,) index of each sample's video.
            age_s: (N,) ages in seconds.
            value_now: (N,) current counts of the metric.
            cold: (N,) whether each sample is a cold start.
            summary: (N, n_summary) summaries.
            horizon_s: (N, J) horizons in seconds.
            growth: (N, J) growth over each horizon in log2 units. NaN where unknown.
            sources: (K, 2) see the class.
            max_horizon_s: longest trained horizon in seconds.
            shortest: shortest trained horizon in seconds.
        """
        column = np.searchsorted(grid_s(max_horizon_s), horizon_s * (1 - 1e-9))
        near = [_samples_near(support_row(age_s), video, row) for row in range(N_AGES)]
        most = np.stack([_largest_growth(video, value_now, column, growth, rows) for rows in near])
        halves = [
            np.stack(
                [_largest_growth(video, value_now, column, growth, rows[video[rows] % 2 == half]) for rows in near]
            )
            for half in (0, 1)
        ]
        seen = np.unique(support_row(age_s))
        apart = np.abs(halves[0] - halves[1])[seen, 0, 1:]
        margin = float(np.clip(np.median(apart), 0.1, _MAX_MARGIN)) if apart.size else _MAX_MARGIN
        usual = np.stack(
            [_usual_growth(column, growth, rows[~cold[rows]] if (~cold[rows]).any() else rows) for rows in near]
        )
        warm = np.flatnonzero(~cold) if (~cold).any() else np.arange(len(cold))
        close = [_samples_near(support_row(age_s[warm]), video[warm], row, min_reach=1) for row in range(N_AGES)]
        low, high = (
            np.stack([edge(summary[warm[rows]], axis=0) for rows in close]).astype(np.float32)
            for edge in (np.min, np.max)
        )
        ages = np.array([age_s.min(), age_s.max()], np.float32)
        return Support(most.astype(np.float32), usual.astype(np.float32), margin, ages, low, high, sources, shortest)

    def extrapolated(
        self,
        types: Sequence[str],
        observed: Sequence[Mapping[str, Mode]],
        age_s: NDArray[np.float64],
        summary: Floats,
        cold: NDArray[np.bool_],
    ) -> list[list[str]]:
        """Return, for each of N inputs, the names of its properties that lie outside the training range.

        ``observed`` says for each input how its types are read. The names are:

        - "age"
        - "counts" for the count of the metric
        - "counts:TYPE" for the count of a type
        - "pace"
        - "events:TYPE" for a type that is read as events but was read as counters in training
        - "counters:TYPE" for a type that is read as counters but was read as events in training
        - "type:TYPE" for a type that did not occur in training
        """
        found: list[list[str]] = []
        young, old = self.ages.astype(np.float64)
        row = support_row(age_s)
        counts, paces = count_columns(len(types)), pace_columns(len(types))
        slack = _PACE_SLACK * (self.high[row] - self.low[row])
        slack[:, counts] = _COUNT_SLACK
        out = (summary < self.low[row] - slack) | (summary > self.high[row] + slack)
        out &= ~cold[:, None]
        for i, modes in enumerate(observed):
            names = []
            # Ages are compared by log(age + 1 minute), so all ages below a minute are treated as nearly equal.
            if age_s[i] > old * 1.1 + LOG_AGE_OFFSET_S or age_s[i] + LOG_AGE_OFFSET_S < (young + LOG_AGE_OFFSET_S) / 2:
                names.append("age")
            if out[i, counts[0]]:
                names.append("counts")
            if out[i, paces].any():
                names.append("pace")
            for k, kind in enumerate(types):
                if kind not in modes:
                    continue
                if not self.sources[k].any():
                    names.append(f"type:{kind}")
                elif not self.sources[k, _SOURCES.index(modes[kind])]:
                    names.append(f"{modes[kind]}:{kind}")
                elif out[i, counts[1 + k]]:
                    names.append(f"counts:{kind}")
            found.append(names)
        return found

    def within(self, age_s: NDArray[np.float64], summary: Floats, cold: NDArray[np.bool_]) -> Floats:
        """Clip the summaries (N, n_summary) to the training range. Summaries of cold starts are not changed."""
        row = support_row(age_s)
        return np.where(cold[:, None], summary, np.clip(summary, self.low[row], self.high[row]))

    def largest(self, age_s: NDArray[np.float64], count: NDArray[np.float64]) -> Floats:
        """Return the largest growth seen in training, (N, N_GRID + 1) float32 log2 units, for ages (N,) and counts (N,)."""
        out: Floats = self.most[support_row(age_s), support_level(count)]
        return out

    def bound(
        self,
        growth: NDArray[np.float64],
        age_s: NDArray[np.float64],
        count: NDArray[np.float64],
        extrapolated: NDArray[np.bool_],
        max_horizon_s: float,
    ) -> NDArray[np.float64]:
        """Bound the growth (N, N_GRID + 1, 1 + len(QUANTILES)) from ``grid_growth`` as the module describes.

        The bounded quantiles stay in order, and the bounded growth never decreases with the horizon.
        """
        bounded = self._spread(growth, age_s, grid_s(max_horizon_s))
        largest = self.largest(age_s, count).astype(np.float64)
        centre_limit = largest.copy()
        upper_limit = largest + self.margin
        quantiles = bounded[..., 1:]
        if extrapolated.any():
            far = np.flatnonzero(extrapolated)
            usual = np.minimum(self.usual[support_row(age_s[far])], largest[far, :, None])
            centre_limit[far] = usual[..., 1]
            lower, upper = slice(0, LOW + 1), slice(HIGH, None)
            quantiles[far, :, lower] = np.minimum(quantiles[far, :, lower], usual[..., :1])
            quantiles[far, :, upper] = np.maximum(quantiles[far, :, upper], usual[..., 1:])
        # The mean and the median.
        centre = bounded[..., :: MEDIAN + 1]
        np.minimum(centre, centre_limit[..., None], out=centre)
        median = quantiles[..., MEDIAN, None]
        np.minimum(quantiles[..., :MEDIAN], median, out=quantiles[..., :MEDIAN])
        np.minimum(quantiles[..., MEDIAN + 1 :], upper_limit[..., None], out=quantiles[..., MEDIAN + 1 :])
        np.maximum(quantiles[..., MEDIAN + 1 :], median, out=quantiles[..., MEDIAN + 1 :])
        bounded[:, 0] = 0.0
        return np.maximum.accumulate(bounded, axis=1)

    def _spread(
        self, growth: NDArray[np.float64], age_s: NDArray[np.float64], horizon_s: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Spread the growth at the shortest trained horizon evenly over log(age + 1 minute), for all shorter horizons."""
        last = int(np.searchsorted(horizon_s, self.shortest, side="right")) - 1
        out = growth.copy()
        if last < 1:
            return out
        older = np.log1p(horizon_s[: last + 1] / (age_s[:, None] + LOG_AGE_OFFSET_S))
        out[:, : last + 1] = growth[:, last : last + 1] * (older / older[:, -1:])[..., None]
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are stored in a bundle's weights."""
        return {f"support.{name}": np.atleast_1d(getattr(self, name)) for name in self.__slots__}

    @staticmethod
    def of(weights: Mapping[str, NDArray[np.float32]]) -> Support:
        """Rebuild the support from the arrays that ``arrays`` returned."""
        most, usual, margin, ages, low, high, sources, shortest = (weights[f"support.{n}"] for n in Support.__slots__)
        return Support(most, usual, float(margin[0]), ages, low, high, sources.astype(bool), float(shortest[0]))


def _samples_near(rows: NDArray[np.int64], video: NDArray[np.int64], row: int, min_reach: int = 0) -> NDArray[np.int64]:
    """Return the indices (n,) of the samples in an age bucket and in the buckets around it.

    The range of buckets includes ``min_reach`` buckets on each side. This range is widened until it holds at least
    MIN_VIDEOS videos.
    """
    away = np.abs(rows - row)
    for reach in range(min_reach, N_AGES):
        chosen = np.flatnonzero(away <= reach)
        if len(np.unique(video[chosen])) >= MIN_VIDEOS:
            return chosen
    return np.arange(len(rows))


def _largest_growth(
    video: NDArray[np.int64],
    value_now: NDArray[np.float64],
    column: NDArray[np.int64],
    growth: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the largest growth of the samples ``rows`` for each level and grid horizon, (N_LEVELS, N_GRID + 1)."""
    out = np.zeros((N_LEVELS, N_GRID + 1))
    level = support_level(value_now[rows])
    known = np.isfinite(growth[rows])
    for at in range(N_LEVELS):
        chosen = level >= at
        if len(np.unique(video[rows[chosen]])) < MIN_VIDEOS:
            # Too few videos reached this count, so the videos with the highest counts are used as well.
            highest = _highest(video[rows], value_now[rows])
            chosen = chosen | highest
        seen = known & chosen[:, None]
        largest = np.full(N_GRID + 1, -1.0)
        np.maximum.at(largest, np.minimum(column[rows][seen], N_GRID), growth[rows][seen])
        out[at] = _filled(largest)
    return out


def _highest(video: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each sample belongs to one of the MIN_VIDEOS videos with the highest counts, (n,) bool."""
    names, index = np.unique(video, return_inverse=True)
    top = np.zeros(len(names))
    np.maximum.at(top, index, value)
    return np.isin(index, np.argsort(-top, kind="stable")[:MIN_VIDEOS])


def _filled(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fill the gaps in ``largest`` so that growth never decreases with the horizon.

    Horizons that are shorter than the shortest observed horizon get the growth at that horizon. The growth at horizon
    0 is 0.
    """
    seen = np.flatnonzero(largest >= 0)
    out = np.maximum.accumulate(largest)
    if not len(seen):
        return np.zeros(len(largest))
    out[: seen[0]] = largest[seen[0]]
    out[0] = 0.0
    return out


def _usual_growth(
    column: NDArray[np.int64], growth: NDArray[np.float64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the quantiles 0.1 and 0.9 of growth at each grid horizon, (N_GRID + 1, 2).

    The quantiles are interpolated between observed horizons and never decrease with the horizon.
    """
    known = np.isfinite(growth[rows])
    at, values = np.minimum(column[rows][known], N_GRID), growth[rows][known]
    knots, quantiles = [0], [np.zeros(2)]
    order = np.argsort(at, kind="stable")
    at, values = at[order], values[order]
    start = 0
    while start < len(at):
        stop = int(np.searchsorted(at, at[min(start + MIN_VIDEOS, len(at)) - 1], side="right"))
        if stop - start >= MIN_VIDEOS or len(knots) == 1:
            knots.append(max(int(at[stop - 1]), knots[-1] + 1))
            quantiles.append(np.quantile(values[start:stop], (0.1, 0.9)))
        start = stop
    table = np.array(quantiles)
    grid = np.arange(N_GRID + 1)
    filled = np.stack([np.interp(grid, knots, table[:, side]) for side in range(2)], axis=-1)
    return np.maximum.accumulate(filled, axis=0)
