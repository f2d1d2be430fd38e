"""Ranks candidates by their combined similarity, and computes the neighbours' features for the fusion block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.bank.interface import BankQuery, Candidate, Curve
from model.engagement.bins import HOUR_US
from model.forecast import Neighbour
from model.growth.base_growth import LOG_AGES, N_BASE, base_growth
from model.growth.curve_kernels import CURVE_EDGES_US, N_GROWTH, curve_growth, pace_sum

KNOWN: Final = N_GROWTH
"""First column of the masks of the growth."""
RESIDUAL: Final = 2 * N_GROWTH
"""First column of the residuals."""
_REST: Final = 3 * N_GROWTH
SIMILARITY: Final = _REST + 6
"""Column of the combined similarity."""
RECENCY: Final = _REST + 10
"""Column of the recency."""
N_NEIGHBOUR: Final = _REST + 11
"""Number of features of a neighbour. The features are, in order:

- the growth over each horizon after the target's age, and a mask for each horizon
- the residual over each horizon: the growth minus the base forecast (``model.growth.base_growth``)
- the neighbour's level minus the target's level at the target's age, and a mask. A level is log2(1 + count).
- the cosine of content and its mask, and the cosine of trajectory and its mask
- the combined similarity
- whether the neighbour and the target have the same creator
- the number of known growth steps, and how much faster than usual these steps were
- the recency: how many days earlier than the target the neighbour was published, on a log scale
"""
CANDIDATES: Final = 3
"""The search finds this many times K candidates in each way. Of them, the best K become neighbours."""
AGING: Final = 0.06
"""When candidates are ranked, one that was published d days before the target loses AGING * log(1 + d) of its similarity."""
_DAY_US: Final = 24 * HOUR_US
_EDGES_US: Final = CURVE_EDGES_US


@dataclass(frozen=True, slots=True)
class Ranked:
    """A neighbour and its similarities, each in -1 .. 1. The cosine ``content`` or ``trajectory`` is None if a vector is missing."""

    candidate: Candidate
    similarity: float
    content: float | None
    trajectory: float | None


def combine(
    content: NDArray[np.float64], trajectory: NDArray[np.float64], content_weight: float
) -> NDArray[np.float64]:
    """Return the combined similarity S = w cos(content) + (1 - w) cos(trajectory).

    If one cosine is NaN, S is the other cosine. The arrays have equal shapes.
    """
    both = content_weight * content + (1 - content_weight) * trajectory
    return np.where(np.isnan(content), trajectory, np.where(np.isnan(trajectory), content, both))


def aged(similarity: NDArray[np.float64], earlier_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return similarities, reduced for older videos by AGING.

    ``earlier_us`` is how much earlier than the target each video was published, in microseconds. A later video loses nothing.
    """
    return np.asarray(similarity - AGING * np.log1p(np.maximum(earlier_us, 0) / _DAY_US))


def rank(
    query: BankQuery, candidates: Sequence[Candidate], content_weight: float, k: int, published_us: int
) -> list[Ranked]:
    """Return the k best candidates, best first. The order is that of ``aged`` similarities, and ties are ordered by id.

    ``published_us`` is the publication time of the target.
    """
    contents = _cosines(query.content, [c.content for c in candidates])
    trajectories = _cosines(query.trajectory, [c.trajectory for c in candidates])
    similarity = combine(contents, trajectories, content_weight)
    known = [i for i in range(len(candidates)) if not np.isnan(similarity[i])]
    order = aged(similarity, published_us - np.array([c.published_us for c in candidates], np.int64))
    best = sorted(known, key=lambda i: (-order[i], candidates[i].video_id))[:k]
    return [
        Ranked(candidates[i], float(similarity[i]), _optional(contents[i]), _optional(trajectories[i])) for i in best
    ]


def _optional(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _cosines(query: NDArray[np.float32] | None, vectors: list[NDArray[np.float32] | None]) -> NDArray[np.float64]:
    out = np.full(len(vectors), np.nan)
    at = [i for i, vector in enumerate(vectors) if vector is not None]
    if query is None or not at:
        return out
    norm = np.sqrt(np.square(query.astype(np.float64)).sum())
    if norm > 0:
        rows = np.concatenate([vectors[i] for i in at]).reshape(len(at), -1).astype(np.float64)
        out[at] = np.einsum("nd,d->n", rows, query.astype(np.float64) / norm, optimize=False)
    return out


@numba.njit(cache=True, nogil=True)
def fill_features(  # type: ignore[no-untyped-def]
    ages_us, values, n, age_us, horizons_us, level_now, cosines, similarity, same_creator, earlier_us, pace, base, out
):
    """Write a neighbour's features into ``out``.

    Args:
        ages_us: (>= n,) int64 ages of the neighbour's curve in microseconds.
        values: (>= n,) int64 counts of the neighbour's curve.
        n: number of known points of the curve.
        age_us: age of the target in microseconds.
        horizons_us: (N_GROWTH,) int64 horizons in microseconds.
        level_now: log2(1 + count) of the target at ``age_us``.
        cosines: (2,) cosines of content and trajectory. NaN where missing.
        similarity: the combined similarity.
        same_creator: whether the neighbour and the target have the same creator.
        earlier_us: how much earlier than the target the neighbour was published, in microseconds.
        pace: (N_CURVE,) usual growth by age.
        base: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) float64 weights of the base forecast.
        out: (N_NEIGHBOUR,) float32.
    """
    out[:] = 0
    one, expected, features = np.empty(N_GROWTH + 1), np.empty(N_GROWTH), np.empty(N_BASE)
    curve_growth(ages_us, values, n, age_us, horizons_us, one)
    if not np.isnan(one[N_GROWTH]):
        base_growth(ages_us, values, n, age_us, base, LOG_AGES, features, expected)
    for h in range(N_GROWTH):
        if not np.isnan(one[h]):
            out[h] = one[h] / 2
            out[KNOWN + h] = 1
            out[RESIDUAL + h] = one[h] - expected[h]
    at = _REST
    if not np.isnan(one[N_GROWTH]):
        out[at] = (one[N_GROWTH] - level_now) / 4
        out[at + 1] = 1
    for c in range(2):
        if not np.isnan(cosines[c]):
            out[at + 2 + 2 * c] = cosines[c]
            out[at + 3 + 2 * c] = 1
    out[SIMILARITY] = similarity
    out[at + 7] = 1 if same_creator else 0
    faster, steps = pace_sum(ages_us, values, n, _EDGES_US, pace)
    out[at + 8] = np.log1p(steps) / 3
    out[at + 9] = faster / (steps + 1.0)
    out[RECENCY] = np.log1p(max(earlier_us, 0) * 1e-6 / 86_400.0) / 3


def explain(item: Ranked, age_us: int, horizons_us: tuple[int, ...], further: str | None = None) -> Neighbour:
    """Return the description of a neighbour for a forecast: its similarities, and its growth from ``age_us`` on.

    The growth is that of the metric ``further``, or of the first metric if ``further`` is None.
    """
    growth = _growth_factors(item.candidate.curve_of(further), age_us, horizons_us)
    return Neighbour(item.candidate.video_id, item.similarity, item.content, item.trajectory, growth)


def _growth_factors(curve: Curve, age_us: int, horizons_us: tuple[int, ...]) -> dict[int, float | None]:
    """Return, for each horizon, the factor by which a count grew from ``age_us`` on. An unknown factor is None."""
    order = sorted(horizons_us)
    growth = np.empty(len(order) + 1)
    curve_growth(curve.ages_us, curve.values, len(curve.ages_us), age_us, np.array(order, dtype=np.int64), growth)
    known = {h: None if np.isnan(growth[i]) else float(np.exp2(growth[i])) for i, h in enumerate(order)}
    return {h: known[h] for h in horizons_us}
