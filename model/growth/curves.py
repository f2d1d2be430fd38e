"""Growth curves of many videos, and the times at which their points became known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.rows import VideoRows
from model.growth.base_growth import no_base
from model.growth.curve_kernels import CURVE_EDGES_US, N_CURVE, NOMINAL_AGES_US, slope

FAR_FUTURE_US: Final = np.iinfo(np.int64).max
"""A time that is never reached. It stands for "never known"."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of V videos.

    Attributes:
        ages_us: (V, N_CURVE) int64 ages of the points.
        values: (V, N_CURVE) int64 counts at these ages.
        lengths: (V,) int64, number of valid points of each curve. The valid points come first in ``ages_us`` and
            ``values``.
        pace: (N_CURVE,) float64, usual growth per log age in each coarse age bin. The curves of a creator's videos
            and of neighbours are compared with it.
        base: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) float64, weights of the base forecast of growth
            (``model.growth.base_growth``). The growth of these videos is compared with it.
    """

    ages_us: NDArray[np.int64]
    values: NDArray[np.int64]
    lengths: NDArray[np.int64]
    pace: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_CURVE))
    base: NDArray[np.float64] = field(default_factory=no_base)


@numba.njit(cache=True, nogil=True)
def _snapshot_curves(offsets, time_us, totals, published_us, until_us, edges, ages, values, lengths):  # type: ignore[no-untyped-def]
    for v in range(len(published_us)):
        n, filled = 0, -1
        i = offsets[v]
        while i < offsets[v + 1] and time_us[i] <= until_us:
            # The rows of one snapshot have the same time. The last of these rows has the total.
            while i + 1 < offsets[v + 1] and time_us[i + 1] == time_us[i]:
                i += 1
            age = time_us[i] - published_us[v]
            index = np.searchsorted(edges, age, side="right") - 1
            if index > filled and n < ages.shape[1] and index < len(edges) - 1:
                ages[v, n] = age
                values[v, n] = totals[i]
                filled = index
                n += 1
            i += 1
        lengths[v] = n


@numba.njit(cache=True, nogil=True)
def _event_curves(offsets, time_us, totals, published_us, until_us, edges, ages, values, lengths):  # type: ignore[no-untyped-def]
    for v in range(len(published_us)):
        i, n, total = offsets[v], 0, 0
        for e in range(ages.shape[1]):
            at = published_us[v] + edges[e]
            if at > until_us:
                break
            while i < offsets[v + 1] and time_us[i] <= at:
                total = totals[i]
                i += 1
            ages[v, n] = edges[e]
            values[v, n] = total
            n += 1
        lengths[v] = n


def curves(
    source: VideoRows, totals: NDArray[np.int64], published_us: NDArray[np.int64], until_us: int, *, continuous: bool
) -> Curves:
    """Return the curves of all videos, computed from rows up to ``until_us``.

    Events (``continuous``) are read at the edges of the coarse age grid. For counters, the *first* snapshot in each
    coarse bin is used. So no point depends on a later row. If a curve is truncated at a time, the result equals the
    curve of a data set that ends at that time.
    """
    n = len(published_us)
    ages, values = np.zeros((n, N_CURVE), np.int64), np.zeros((n, N_CURVE), np.int64)
    lengths = np.zeros(n, np.int64)
    fill = _event_curves if continuous else _snapshot_curves
    fill(source.offsets, source.time_us, totals, published_us, until_us, CURVE_EDGES_US, ages, values, lengths)
    return Curves(ages, values, lengths)


def usable_from(curves: Curves, published_us: NDArray[np.int64], after_age_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the time from which growth beyond an age is known, (V,) int64. The time is FAR_FUTURE_US if this growth never becomes known.

    The returned time is that of the first curve point that is later than ``after_age_us`` (V,) and is not the first
    point of the curve.
    """
    # After the end of a curve, the array holds zeros. These zeros are not ages, so they are replaced.
    ages = np.where(np.arange(curves.ages_us.shape[1])[None] < curves.lengths[:, None], curves.ages_us, FAR_FUTURE_US)
    point = np.maximum((ages <= after_age_us[:, None]).sum(1), 1)
    age = np.append(ages, np.full((len(ages), 1), FAR_FUTURE_US), axis=1)[np.arange(len(ages)), point]
    return np.where(age < FAR_FUTURE_US, published_us + np.minimum(age, FAR_FUTURE_US // 4), FAR_FUTURE_US)


def trajectory_cuts(of: Curves) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the video, the age bucket and the age in microseconds of each cut point of a trajectory, sorted by video.

    A cut point is a nominal age at which the trajectory vector is read. A video has a cut point at each nominal age from
    its first curve point to its last one.
    """
    newest = of.ages_us[np.arange(len(of.lengths)), np.maximum(of.lengths - 1, 0)]
    covered = (of.ages_us[:, :1] <= NOMINAL_AGES_US) & (newest[:, None] >= NOMINAL_AGES_US)
    video, bucket = np.nonzero(covered & (of.lengths > 0)[:, None])
    return video, bucket, NOMINAL_AGES_US[bucket]


@numba.njit(cache=True, nogil=True)
def _slopes(ages_us, values, lengths, edges, total, count):  # type: ignore[no-untyped-def]
    for v in range(len(lengths)):
        for i in range(1, lengths[v]):
            if ages_us[v, i - 1] > 0:
                at = min(np.searchsorted(edges, ages_us[v, i], side="right") - 1, len(total) - 1)
                total[at] += slope(ages_us[v], values[v], i)
                count[at] += 1


def usual_pace(of: Curves, min_steps: int = 30) -> NDArray[np.float64]:
    """Return the mean growth per log age in each coarse age bin, (N_CURVE,) float64.

    A bin with fewer than ``min_steps`` steps is interpolated from its neighbours.
    """
    total, count = np.zeros(N_CURVE), np.zeros(N_CURVE)
    _slopes(of.ages_us, of.values, of.lengths, CURVE_EDGES_US, total, count)
    known = np.flatnonzero(count >= min_steps)
    if not len(known):
        return np.full(N_CURVE, total.sum() / max(count.sum(), 1.0))
    return np.interp(np.arange(N_CURVE), known, total[known] / count[known])
