"""Fits the projection of trajectory vectors, so that near videos have equal residuals: growth beyond the base forecast.

The loss is that of a neighbour regression. In a batch of videos at one nominal age, each video's residuals are forecast by the
mean of the other videos' residuals, weighted by softmax(t cos). The projection starts from the identity. It is only used if it
forecasts other videos better than the identity does.

Source: Goldberger et al., "Neighbourhood Components Analysis" (2004), with the squared error of a regression (Weinberger and
Tesauro, "Metric Learning for Kernel Regression", 2007).
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.features.trajectory import TrajectorySpace
from model.growth.base_growth import LOG_AGES, N_BASE, base_growth
from model.growth.curve_kernels import N_GROWTH, NOMINAL_AGES_US, curve_growth
from model.growth.curves import Curves

Floats = NDArray[np.float32]

_STEPS: Final = 400
_BATCH: Final = 512
_MIN_BATCH: Final = 64
_RATE: Final = 0.01
_TO_IDENTITY: Final = 1e-3
"""Weight of the squared distance to the identity, which keeps the projection from fitting noise."""
_HELD: Final = 0.2
"""Share of the videos that judge the projection."""
_FIRST_FOCUS: Final = 8.0


def residuals(
    known: Curves,
    horizons_us: NDArray[np.int64],
    video: NDArray[np.int64],
    bucket: NDArray[np.int64],
) -> Floats:
    """Return the residuals (T, N_GROWTH) float32 of T pairs of a video and a nominal age. They are NaN where the growth is not known."""
    out = np.full((len(video), N_GROWTH), np.nan)
    _residuals(
        known.ages_us,
        known.values,
        known.lengths,
        video,
        NOMINAL_AGES_US[bucket],
        horizons_us,
        known.base,
        LOG_AGES,
        out,
    )
    return out.astype(np.float32)


@numba.njit(cache=True)
def _residuals(ages_us, values, lengths, video, age_us, horizons_us, base, log_ages, out):  # type: ignore[no-untyped-def]
    grown, expected, features = np.empty(N_GROWTH + 1), np.empty(N_GROWTH), np.empty(N_BASE)
    for i in range(len(video)):
        v = video[i]
        curve_growth(ages_us[v], values[v], lengths[v], age_us[i], horizons_us, grown)
        if np.isnan(grown[0]):
            continue
        base_growth(ages_us[v], values[v], lengths[v], age_us[i], base, log_ages, features, expected)
        for h in range(N_GROWTH):
            out[i, h] = grown[h] - expected[h]


def fit_projection(
    space: TrajectorySpace,
    shapes: Floats,
    residual: Floats,
    video: NDArray[np.int64],
    bucket: NDArray[np.int64],
    seed: int,
) -> TrajectorySpace:
    """Return ``space`` with the fitted projection, or with the identity if that is better.

    Args:
        space: the space with the mean shapes.
        shapes: (T, D) shapes of T pairs of a video and a nominal age.
        residual: (T, N_GROWTH) their residuals; see ``residuals``.
        video: (T,) index of the video.
        bucket: (T,) index of the nominal age.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    usable = shapes.any(1) & np.isfinite(residual).any(1)
    held = rng.random(int(video.max(initial=-1)) + 1) < _HELD
    fit, judge = (np.flatnonzero(usable & (held[video] == chosen)) for chosen in (False, True))
    x = space.vectors(shapes, bucket)
    known = [column[np.isfinite(column)] for column in residual[usable].T]
    scale = [max(float(column.std()), 1e-6) if len(column) else 1.0 for column in known]
    y = (residual / np.array(scale)).astype(np.float32)
    batches = _batches(fit, bucket, rng)
    judged = _batches(judge, bucket, rng)
    if not batches or not judged:
        return space
    dim = x.shape[1]
    projection = torch.eye(dim, requires_grad=True)
    focus = torch.tensor(np.log(_FIRST_FOCUS), dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([projection, focus], lr=_RATE)
    for _ in range(_STEPS):
        rows = batches[rng.integers(len(batches))]
        rows = rng.permutation(rows)[:_BATCH]
        loss = _loss(x[rows], y[rows], video[rows], projection, focus)
        (loss + _TO_IDENTITY * (projection - torch.eye(dim)).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        first = torch.eye(dim), torch.tensor(_best_focus(x, y, video, judged))
        before, after = (
            float(np.mean([float(_loss(x[rows], y[rows], video[rows], p, f)) for rows in judged]))
            for p, f in (first, (projection, focus))
        )
    if after >= before:
        return space
    return TrajectorySpace(space.centre, projection.detach().numpy().astype(np.float32))


def _batches(rows: NDArray[np.int64], bucket: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return groups of up to 4 batches of rows with the same nominal age. Small groups are left out."""
    out = []
    for at in np.unique(bucket[rows]):
        mine = rng.permutation(rows[bucket[rows] == at])
        out += [mine[start : start + 4 * _BATCH] for start in range(0, len(mine), 4 * _BATCH)]
    return [group for group in out if len(group) >= _MIN_BATCH]


def _best_focus(x: Floats, y: Floats, video: NDArray[np.int64], batches: list[NDArray[np.int64]]) -> float:
    """Return the log focus with which the identity forecasts ``batches`` best."""
    tried = np.log([2.0, 4.0, 8.0, 16.0, 32.0])
    eye = torch.eye(x.shape[1])
    losses = [
        np.mean([float(_loss(x[rows], y[rows], video[rows], eye, torch.tensor(focus))) for rows in batches])
        for focus in tried.tolist()
    ]
    return float(tried[int(np.argmin(losses))])


def _loss(x: Floats, y: Floats, video: NDArray[np.int64], projection: Tensor, focus: Tensor) -> Tensor:
    """Return the mean squared error of the neighbour regression in one batch."""
    vectors = F.normalize(torch.from_numpy(x) @ projection, dim=-1)
    score = torch.exp(focus).float() * (vectors @ vectors.t())
    own = torch.from_numpy(video[:, None] == video[None])
    weight = torch.softmax(score.masked_fill(own, -torch.inf), dim=-1)
    target = torch.from_numpy(y)
    known = torch.isfinite(target).float()
    total = weight @ known
    mean = (weight @ torch.nan_to_num(target)) / total.clamp(min=1e-9)
    counted = known * (total > 1e-6)
    return (counted * (mean - torch.nan_to_num(target)).square()).sum() / counted.sum().clamp(min=1)
