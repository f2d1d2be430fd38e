"""Finds neighbours of training samples, exactly as a bank would have returned them at the samples' times.

The candidates of a sample are the ``bank_videos`` newest videos published before the sample's ``now``. Some growth of a
candidate must have been observed by ``now``. The search finds the best candidates by content. The search also finds the
best candidates by trajectory in the sample's age bucket. Both lists are merged and ranked by combined similarity. The
search computes one masked matrix product per block of samples, in order of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.bank.neighbours import N_NEIGHBOUR, aged, combine, fill_features
from model.features.creator import known_points
from model.growth.curve_kernels import N_GROWTH, growth_horizons_us
from model.growth.curves import Curves

_BLOCK = 512
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class BankArrays:
    """The content of the bank as arrays over V videos, sorted by publication.

    ``content`` (V, Dc) float32: content vectors of unit length.
    ``usable_us`` (V,) int64: time from which each video may be a neighbour.
    ``trajectory`` (T, Dt) float32: T trajectory vectors of unit length, sorted by video.
    ``trajectory_video`` (T,) int64: video of each trajectory vector.
    ``trajectory_bucket`` (T,) int64: age bucket of each trajectory vector.
    ``trajectory_usable_us`` (T,) int64: time from which each trajectory vector may be used.
    """

    published_us: NDArray[np.int64]
    curves: Curves
    content: NDArray[np.float32]
    usable_us: NDArray[np.int64]
    trajectory_video: NDArray[np.int64]
    trajectory_bucket: NDArray[np.int64]
    trajectory_usable_us: NDArray[np.int64]
    trajectory: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of N samples: up to k by content and up to k by trajectory.

    ``video`` (N, 2k) int64: index of each candidate, -1 for none.
    ``content`` and ``trajectory`` (N, 2k) float64: cosines, NaN where missing.
    """

    video: NDArray[np.int64]
    content: NDArray[np.float64]
    trajectory: NDArray[np.float64]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``vectors`` with each row divided by its norm. A zero row stays zero."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: NDArray[np.float32] = (vectors / np.maximum(norm, 1e-12)).astype(np.float32)
    return out


def find_candidates(
    bank: BankArrays,
    samples: Samples,
    content: NDArray[np.float32],
    trajectory: NDArray[np.float32],
    *,
    limit: int,
    bank_videos: int,
    report: Callable[[int], None],
) -> Candidates:
    """Return the candidates of every sample.

    ``content`` (V, Dc) and ``trajectory`` (N, Dt) have rows of unit length, or of length zero if they are missing.
    ``report`` is called with the number of samples just searched.
    """
    n = len(samples.video)
    video = np.full((n, 2 * limit), -1, dtype=np.int64)
    cosines = np.full((2, n, 2 * limit), np.nan)
    buckets = np.maximum(samples.bucket, 0)
    position = np.full((int(buckets.max(initial=0)) + 1, len(bank.published_us)), -1, dtype=np.int64)
    known = bank.trajectory_bucket < len(position)
    position[bank.trajectory_bucket[known], bank.trajectory_video[known]] = np.flatnonzero(known)
    order = np.lexsort((samples.now_us, buckets))
    starts = [0, *(np.flatnonzero(np.diff(buckets[order])) + 1).tolist(), n]
    for first, last in pairwise(starts):
        for start in range(first, last, _BLOCK):
            rows = order[start : min(start + _BLOCK, last)]
            if not len(rows):
                continue
            now = samples.now_us[rows]
            hi = int(np.searchsorted(bank.published_us, now.max()))
            lo = max(0, int(np.searchsorted(bank.published_us, now.min())) - bank_videos)
            window = np.arange(lo, hi)
            at = position[buckets[rows[0]], lo:hi]
            usable = (
                np.where(at >= 0, bank.trajectory_usable_us[np.maximum(at, 0)], _NEVER)
                if len(bank.trajectory_usable_us)
                else np.full(len(window), _NEVER)
            )
            by_content = _cosines(
                content[samples.video[rows]],
                bank.content[lo:hi],
                bank.usable_us[lo:hi],
                now,
                window,
                samples.video[rows],
            )
            vectors = (
                bank.trajectory[np.maximum(at, 0)]
                if len(bank.trajectory)
                else np.zeros((len(window), trajectory.shape[1]), np.float32)
            )
            by_trajectory = _cosines(trajectory[rows], vectors, usable, now, window, samples.video[rows])
            _union(by_content, by_trajectory, lo, limit, video, cosines, rows)
            report(len(rows))
    return Candidates(video, cosines[0], cosines[1])


def _cosines(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    usable_us: NDArray[np.int64],
    now: NDArray[np.int64],
    window: NDArray[np.int64],
    target: NDArray[np.int64],
) -> NDArray[np.float32]:
    out: NDArray[np.float32] = (torch.from_numpy(queries) @ torch.from_numpy(np.ascontiguousarray(vectors)).t()).numpy()
    out[(usable_us[None] > now[:, None]) | (window[None] == target[:, None])] = np.nan
    # A vector of norm zero has no direction. A bank ignores such a vector too.
    out[~queries.any(1)] = np.nan
    out[:, ~vectors.any(1)] = np.nan
    return out


def _union(
    by_content: NDArray[np.float32],
    by_trajectory: NDArray[np.float32],
    lo: int,
    limit: int,
    video: NDArray[np.int64],
    cosines: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> None:
    k = min(limit, by_content.shape[1])
    if not k:
        return
    best = [
        torch.topk(torch.from_numpy(np.nan_to_num(s, nan=-2.0)), k, dim=1).indices.numpy()
        for s in (by_content, by_trajectory)
    ]
    every = np.arange(len(rows))[:, None]
    repeated = (best[1][:, :, None] == best[0][:, None, :]).any(-1) & ~np.isnan(by_content[every, best[1]])
    for source, offset in ((0, 0), (1, limit)):
        index = best[source]
        wanted = ~np.isnan((by_content, by_trajectory)[source][every, index])
        if source:
            wanted &= ~repeated
        block = video[rows]
        block[:, offset : offset + k] = np.where(wanted, index + lo, -1)
        video[rows] = block
        for c, s in enumerate((by_content, by_trajectory)):
            values = cosines[c, rows]
            values[:, offset : offset + k] = np.where(wanted, s[every, index], np.nan)
            cosines[c, rows] = values


@numba.njit(cache=True)
def _features(  # type: ignore[no-untyped-def]
    video,
    content,
    trajectory,
    similarity,
    target,
    now_us,
    level,
    creator,
    published,
    ages,
    values,
    lengths,
    horizons,
    pace,
    base,
    features,
    mask,
):
    cosines = np.empty(2)
    for i in range(len(target)):
        age = now_us[i] - published[target[i]]
        for j in range(video.shape[1]):
            v = video[i, j]
            if v < 0:
                continue
            n = known_points(ages[v], lengths[v], published[v], now_us[i])
            cosines[0], cosines[1] = content[i, j], trajectory[i, j]
            same = creator[v] >= 0 and creator[v] == creator[target[i]]
            fill_features(
                ages[v],
                values[v],
                n,
                age,
                horizons,
                level[i],
                cosines,
                similarity[i, j],
                same,
                published[target[i]] - published[v],
                pace,
                base,
                features[i, j],
            )
            mask[i, j] = 1


def neighbour_features(
    bank: BankArrays,
    candidates: Candidates,
    samples: Samples,
    creator: NDArray[np.int64],
    *,
    content_weight: float,
    k: int,
    max_horizon_us: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the features (N, k, N_NEIGHBOUR) and the mask (N, k) of the k best candidates, ranked by ``aged`` similarity.

    The fusion block reads the features and the mask. ``creator`` (V,) are codes of the videos' creators, -1 for none.
    """
    similarity = combine(candidates.content, candidates.trajectory, content_weight)
    earlier_us = bank.published_us[samples.video][:, None] - bank.published_us[candidates.video]
    order = aged(similarity, earlier_us)
    best = np.argsort(np.where(np.isnan(order), np.inf, -order), axis=1, kind="stable")[:, :k]
    video, content, trajectory, s = (
        np.take_along_axis(x, best, 1)
        for x in (candidates.video, candidates.content, candidates.trajectory, similarity)
    )
    features = np.zeros((len(video), k, N_NEIGHBOUR), np.float32)
    mask = np.zeros((len(video), k), np.float32)
    curves = bank.curves
    _features(
        video,
        content,
        trajectory,
        s,
        samples.video,
        samples.now_us,
        np.log2(1 + samples.value_now),
        creator,
        bank.published_us,
        curves.ages_us,
        curves.values,
        curves.lengths,
        growth_horizons_us(max_horizon_us),
        curves.pace,
        curves.base,
        features,
        mask,
    )
    return features, mask


def nearest_growth_error(
    features: NDArray[np.float32], mask: NDArray[np.float32], samples: Samples, max_horizon_s: float
) -> float:
    """Return the mean squared error of forecasting only by the neighbours' mean growth.

    The weight of content in similarity is chosen by this error.
    """
    known = features[..., N_GROWTH : 2 * N_GROWTH] * mask[..., None]
    mean = (features[..., :N_GROWTH] * 2 * known).sum(1) / np.maximum(known.sum(1), 1e-9)
    at = np.log(growth_horizons_us(round(max_horizon_s * 1e6)) / 1e6)
    errors = []
    for h in range(samples.growth.shape[1]):
        x = np.log(np.maximum(samples.horizon_s[:, h], 1.0))
        upper = np.clip(np.searchsorted(at, x), 1, len(at) - 1)
        rows = np.arange(len(x))
        share = np.clip((x - at[upper - 1]) / (at[upper] - at[upper - 1]), 0, 1)
        guess = mean[rows, upper - 1] * (1 - share) + mean[rows, upper] * share
        fine = (
            np.isfinite(samples.growth[:, h])
            & ~samples.cold
            & (known.sum(1)[rows, upper] > 0)
            & (known.sum(1)[rows, upper - 1] > 0)
        )
        errors.append(np.square(guess - samples.growth[:, h])[fine])
    every = np.concatenate(errors)
    return float(every.mean()) if len(every) else float("nan")
