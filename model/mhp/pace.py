"""A video's own pace, from which the intensity of the Mamba-Hawkes process starts.

For each type k and each memory theta, two sums run over the tokens so far. Both sums use the log-age clock x =
log(age + offset):

    n = sum of counts exp(-(x - x_i) / theta),    m = sum of observed log-age exp(-(x - x_i) / theta)

The pace is (n + 1) / (m + 1 / u), in engagements per unit of log-age. u is the type's usual pace. This usual pace
acts as a prior with the weight of one engagement. As in a Hawkes process, a count excites later counts, and this
effect fades. A rate that is proportional to 1 / age has a constant pace.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.features.tokens import LOG_AGE_OFFSET_S, Tokens

MEMORIES: Final = (0.03, 0.15, 0.8)
"""The memories theta, in log-age. The three memories cover about the last 3 % of the age, the last 15 %, and the last half."""


@numba.njit(cache=True, nogil=True)
def _paces(offsets, x, counts, observed, memories, out):  # type: ignore[no-untyped-def]
    n_types = counts.shape[1]
    n_memories = len(memories)
    sums = np.zeros((n_types, n_memories, 2))
    for v in range(len(offsets) - 1):
        sums[:] = 0.0
        for i in range(offsets[v], offsets[v + 1]):
            width = x[i, 1] - x[i, 0]
            for m in range(n_memories):
                kept = np.exp(-width / memories[m])
                # Engagement is spread evenly over the interval, so it has partly faded at the end of the interval.
                part = memories[m] * (1 - kept)
                share = part / width if width > 0 else 1.0
                for k in range(n_types):
                    sums[k, m, 0] *= kept
                    sums[k, m, 1] *= kept
                    if observed[i, k]:
                        sums[k, m, 0] += share * counts[i, k]
                        sums[k, m, 1] += part
            out[i] = sums


def pace_after(tokens: Tokens) -> NDArray[np.float32]:
    """Return the sums n and m after each token, a float32 array >= 0 of shape (tokens, K, len(MEMORIES), 2)."""
    out = np.zeros((*tokens.counts.shape, len(MEMORIES), 2))
    x = np.log(tokens.interval_s[:, ::2] + LOG_AGE_OFFSET_S)
    _paces(tokens.offsets, x, tokens.counts, tokens.observed, np.array(MEMORIES), out)
    return out.astype(np.float32)


def pace_rows(tokens: Tokens) -> NDArray[np.float32]:
    """Return ``pace_after`` with an additional last row of zeros, which is the pace before the first token of a sequence.

    So row -1 is the pace without any token.
    """
    after = pace_after(tokens)
    return np.concatenate([after, np.zeros_like(after, shape=(1, *after.shape[1:]))])
