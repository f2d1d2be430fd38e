"""The shape of a video's curve so far. Videos of equal shape are found as neighbours by trajectory.

A shape is read at a nominal age, which is the largest of ``NOMINAL_AGES_US`` that the video has reached and that its data
cover. So two videos are compared at exactly the same age. The age is divided into N_STEPS equal steps. For each step j,
the shape holds

    sqrt(c_j / (c_1 + ... + c_n)),    c_j = the counts of step j, n = N_STEPS

Within a token's interval, counts are spread evenly. Counts from before the first reading of a counter have no known
time, so they are left out. The square root makes the cosine of two shapes the Bhattacharyya coefficient of the two
distributions of counts over age. The level of the curve cancels out.

There is one such block for the metric, and one with less weight for each other type.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US
from model.features.tokens import Tokens
from model.growth.curve_kernels import NOMINAL_AGES_US, age_bucket

N_STEPS: Final = 16
"""Number of steps into which the age is divided."""
OTHER_WEIGHT: Final = 0.4
"""Weight of the block of a type other than the metric. The metric's block has weight 1."""
MIN_TOKENS: Final = 3
"""Minimum number of tokens of a shape. With fewer tokens, a curve is nearly a straight line, which tells nothing."""


def shape_dim(n_types: int, metric: tuple[int, ...]) -> int:
    """Return the number D of values of a shape. ``metric`` holds the indices of the types that the metric counts."""
    return N_STEPS * (1 + len(_others(n_types, metric)))


def shape_bucket(known_until_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the largest nominal age that is at most each age (N,) in seconds. The index is -1 if there is none."""
    return age_bucket(np.round(known_until_s * SECOND_US).astype(np.int64))


def shapes(
    tokens: Tokens, sequence: NDArray[np.int64], bucket: NDArray[np.int64], metric: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return shapes (N, D) float32. A shape that cannot be read is zero.

    Args:
        tokens: tokens of S sequences.
        sequence: (N,) index of the sequence of each shape.
        bucket: (N,) index of the nominal age of each shape, or -1. The data of the sequence must cover this age.
        metric: indices of the types that the metric counts.
    """
    n_types = tokens.counts.shape[1]
    out = np.zeros((len(sequence), shape_dim(n_types, metric)), np.float32)
    blocks = [metric, *((k,) for k in _others(n_types, metric))]
    for at, kinds in enumerate(blocks):
        count = np.ascontiguousarray(tokens.counts[:, list(kinds)].sum(1))
        weight = OTHER_WEIGHT if at else 1.0
        ages_s, first = NOMINAL_AGES_US / SECOND_US, N_STEPS * at
        _fill(tokens.offsets, tokens.interval_s, count, sequence, bucket, ages_s, weight, N_STEPS, first, out)
    # Without a shape of the metric, the other types tell too little.
    out[~out[:, :N_STEPS].any(1)] = 0
    return out


def _others(n_types: int, metric: tuple[int, ...]) -> list[int]:
    return [k for k in range(n_types) if (k,) != metric]


@numba.njit(cache=True, nogil=True)
def _fill(offsets, interval_s, count, sequence, bucket, ages_s, weight, n_steps, column, out):  # type: ignore[no-untyped-def]
    steps = np.zeros(n_steps)
    for i in range(len(sequence)):
        if bucket[i] < 0:
            continue
        age = ages_s[bucket[i]]
        steps[:] = 0
        read = 0
        for t in range(offsets[sequence[i]], offsets[sequence[i] + 1]):
            start, end = interval_s[t, 1], interval_s[t, 2]
            if start >= age:
                break
            if count[t] <= 0 or start <= 0:
                continue
            read += 1
            width = max(end - start, 1e-6)
            first = int(start / age * n_steps)
            for j in range(first, n_steps):
                low, high = max(start, age * j / n_steps), min(end, age * (j + 1) / n_steps)
                if low >= end:
                    break
                steps[j] += count[t] * max(high - low, 0.0) / width
        total = steps.sum()
        if read < MIN_TOKENS - 1 or total <= 0:
            continue
        for j in range(n_steps):
            out[i, column + j] = weight * np.sqrt(steps[j] / total)
