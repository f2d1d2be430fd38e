"""Fits the simple member of the ensemble (``model.quantiles.simple_growth``), and chooses its weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.quantiles.head import N_CENTRE
from model.quantiles.simple_growth import SimpleGrowth, cell_of, no_weight, unit_growth

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

_MIN_VIDEOS: Final = 30
"""Minimum number of videos that decide on a cell. Surrounding cells are added until there are enough."""
_FOLDS: Final = 5
_WEIGHTS: Final = np.linspace(0, 1, 21)
_CAUTION: Final = 1.0
"""Number of standard errors by which the other members must be better than this one to reduce its weight."""


@dataclass(frozen=True, slots=True)
class _Labels:
    """n labels of warm samples. ``video`` (n,) are codes from 0, and the other arrays are (n,) float64."""

    video: NDArray[np.int64]
    age_s: Array
    horizon_s: Array
    value: Array
    growth: Array

    @staticmethod
    def of(samples: Samples) -> _Labels:
        known = _known(samples)
        row = np.nonzero(known)[0]
        _, video = np.unique(samples.video[row], return_inverse=True)
        return _Labels(
            video, samples.age_s[row], samples.horizon_s[known], samples.value_now[row], samples.growth[known]
        )

    def take(self, rows: NDArray[np.bool_]) -> _Labels:
        _, video = np.unique(self.video[rows], return_inverse=True)
        return _Labels(video, self.age_s[rows], self.horizon_s[rows], self.value[rows], self.growth[rows])

    def __len__(self) -> int:
        return len(self.video)


def fit_simple(samples: Samples) -> SimpleGrowth | None:
    """Return the simple member, fitted to the labels of warm samples, with weight 0. Return None if there are no labels.

    The slopes are multiplied by a common factor from 0 to 1, which is chosen by cross-validation by video.
    """
    labels = _Labels.of(samples)
    if not len(labels):
        return None
    share = _slope_share(labels)
    fitted = _fitted(labels)
    fitted = replace(fitted, slope=(fitted.slope * share).astype(np.float32))
    return replace(fitted, offset=_offsets(fitted, labels))


def with_member(
    fit: Samples,
    holdout: Samples,
    forecasts: tuple[Floats, Floats | None],
    stopping: NDArray[np.bool_],
    earlier: SimpleGrowth | None,
) -> tuple[SimpleGrowth | None, Floats, Floats | None]:
    """Fit the simple member and add it to forecasts of the holdout.

    Args:
        fit: the training samples.
        holdout: N other samples.
        forecasts: parts of growth (N, J, N_PARTS) that the other members forecast, with and without neighbours.
        stopping: (N,) flags of the samples that decide on the member's weight.
        earlier: the member of the model that had a holdout, whose weight is used if it is not None.

    Returns:
        The member, or None if nothing can be fitted, and both forecasts of the whole ensemble.
    """
    simple, (parts, plain) = fit_simple(fit), forecasts
    if simple is None:
        return None, parts, plain
    if earlier is None:
        simple = with_weight(simple, holdout.take(stopping), parts[stopping][..., :N_CENTRE])
    else:
        simple = replace(simple, weight=earlier.weight)
    return simple, blended(parts, holdout, simple), None if plain is None else blended(plain, holdout, simple)


def with_weight(member: SimpleGrowth, samples: Samples, others: Floats) -> SimpleGrowth:
    """Return the member with the weight that suits samples from which no member has learned.

    ``others`` (N, J, N_CENTRE) is the centre of the other members. The weight is smaller than 1 only as far as the
    samples prove that the others are better: the gain over this member alone, averaged over videos, is reduced by its
    standard error. So the ensemble falls back to this member if there are few videos.
    """
    known = _known(samples)
    if not known.any():
        return replace(member, weight=np.ones(N_CENTRE, np.float32))
    own = member.centre(samples.value_now, samples.age_s, samples.horizon_s)[known]
    other, y = others[known].astype(np.float64), samples.growth[known]
    _, video = np.unique(samples.video[np.nonzero(known)[0]], return_inverse=True)
    number = np.bincount(video)
    weight = np.empty(N_CENTRE, np.float32)
    for column in range(N_CENTRE):
        gains = []
        for share in _WEIGHTS:
            forecast = other[:, column] + share * (own[:, column] - other[:, column])
            less = _loss(y, own[:, column], column) - _loss(y, forecast, column)
            gain = np.bincount(video, less) / number
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
            gains.append(gain.mean() - _CAUTION * error if share < 1 else 0.0)
        # Of equal gains, the last one is chosen, which belongs to the largest weight.
        weight[column] = _WEIGHTS[len(gains) - 1 - int(np.argmax(gains[::-1]))]
    return replace(member, weight=weight)


def blended(parts: Floats, samples: Samples, member: SimpleGrowth) -> Floats:
    """Return parts of growth (N, J, N_PARTS) with the centre of the ensemble. Cold samples keep their parts."""
    out, warm = parts.copy(), ~samples.cold
    own = member.centre(samples.value_now[warm], samples.age_s[warm], samples.horizon_s[warm])
    out[warm, :, :N_CENTRE] += member.weight * (own.astype(np.float32) - parts[warm, :, :N_CENTRE])
    return out


def _known(samples: Samples) -> NDArray[np.bool_]:
    return np.isfinite(samples.growth) & ~samples.cold[:, None]


def _loss(y: Array, forecast: Array, column: int) -> Array:
    return np.square(forecast - y) if column == 0 else np.abs(forecast - y)


def _slope_share(labels: _Labels) -> float:
    """Return the factor of the slopes with the smallest squared error on videos that the slopes were not fitted to."""
    videos = int(labels.video.max()) + 1
    folds = min(_FOLDS, videos)
    if folds < 2:
        return 0.0
    fold = np.random.default_rng(0).permutation(videos) % folds
    number = np.bincount(labels.video)
    above = below = 0.0
    for k in range(folds):
        held = fold[labels.video] == k
        fitted, rest = _fitted(labels.take(~held)), held.nonzero()[0]
        asked = labels.value[rest], labels.age_s[rest], labels.horizon_s[rest, None]
        whole = fitted.centre(*asked)[:, 0, 0]
        flat = replace(fitted, slope=np.zeros_like(fitted.slope)).centre(*asked)[:, 0, 0]
        weight, turn = 1 / number[labels.video[rest]], whole - flat
        above += float(np.sum(weight * (labels.growth[rest] - flat) * turn))
        below += float(np.sum(weight * turn * turn))
    return float(np.clip(above / below, 0, 1)) if below > 0 else 0.0


def _fitted(labels: _Labels) -> SimpleGrowth:
    """Return the member with its full slopes and without offsets. In each cell, every video has the same weight."""
    row, column = cell_of(labels.age_s), cell_of(labels.horizon_s)
    origin = int(row.min()), int(column.min())
    row, column = row - origin[0], column - origin[1]
    shape = int(row.max()) + 1, int(column.max()) + 1
    flat = row * shape[1] + column
    videos = int(labels.video.max()) + 1
    _, inverse, number = np.unique(flat * videos + labels.video, return_inverse=True, return_counts=True)
    weight = 1 / number[inverse]
    r, v, y = unit_growth(labels.age_s, labels.horizon_s), np.log2(1 + labels.value), labels.growth
    moments = (y, r, r * r, r * r * v, r * r * v * v, r * y, r * y * v)
    sums = np.stack([np.bincount(flat, weight * x, shape[0] * shape[1]).reshape(shape) for x in moments])
    seen = np.zeros((*shape, videos), bool)
    seen[row, column, labels.video] = True
    usual, slopes, middles, spreads = np.zeros((4, *shape), np.float32)
    for i, j in np.ndindex(shape):
        square = _square(seen, i, j, min(_MIN_VIDEOS, videos))
        near = sums[:, square[0], square[1]].sum((1, 2))
        usual[i, j] = near[0] / near[1]
        middles[i, j], spreads[i, j], slopes[i, j] = _slope(near)
    return SimpleGrowth(
        np.array(origin, np.float32),
        usual,
        slopes,
        middles,
        spreads,
        np.zeros(shape, np.float32),
        np.array([y.max()], np.float32),
        no_weight(),
    )


def _slope(sums: Array) -> tuple[float, float, float]:
    """Return the mean and the standard deviation of log2(1 + count) and the slope, by least squares from the sums of a square of cells."""
    _, _, rr, rrv, rrvv, ry, ryv = sums.tolist()
    middle = rrv / rr
    variance = max(rrvv / rr - middle * middle, 0.0)
    if variance < 1e-6:
        return middle, 1.0, 0.0
    spread = float(np.sqrt(variance))
    return middle, spread, (ryv - middle * ry) / (rr * spread)


def _square(seen: NDArray[np.bool_], i: int, j: int, min_videos: int) -> tuple[slice, slice]:
    """Return the smallest square of cells around (i, j) in which ``min_videos`` videos have labels."""
    reach = 0
    while True:
        square = slice(max(i - reach, 0), i + reach + 1), slice(max(j - reach, 0), j + reach + 1)
        if np.count_nonzero(seen[square].any(axis=(0, 1))) >= min_videos:
            return square
        reach += 1


def _offsets(fitted: SimpleGrowth, labels: _Labels) -> Floats:
    """Return the median of the errors, in multiples of r, in the surroundings of each cell."""
    shape = fitted.usual.shape
    row = cell_of(labels.age_s) - int(fitted.origin[0])
    column = cell_of(labels.horizon_s) - int(fitted.origin[1])
    order = np.argsort(row * shape[1] + column, kind="stable")
    starts = np.searchsorted((row * shape[1] + column)[order], np.arange(shape[0] * shape[1] + 1))
    mean = fitted.centre(labels.value, labels.age_s, labels.horizon_s[:, None])[:, 0, 0]
    error = ((labels.growth - mean) / unit_growth(labels.age_s, labels.horizon_s))[order]
    seen = np.zeros((*shape, int(labels.video.max()) + 1), bool)
    seen[row, column, labels.video] = True
    out = np.zeros(shape, np.float32)
    for i, j in np.ndindex(shape):
        rows, columns = _square(seen, i, j, min(_MIN_VIDEOS, seen.shape[2]))
        last = min(columns.stop, shape[1])
        parts = [
            error[starts[k * shape[1] + columns.start] : starts[k * shape[1] + last]]
            for k in range(rows.start, min(rows.stop, shape[0]))
        ]
        out[i, j] = np.median(np.concatenate(parts))
    return out
