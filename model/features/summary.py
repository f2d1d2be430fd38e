"""A video's history in a few numbers: how fast the video grew in its newest steps and during the newest fractions of its age.

The Mamba-Hawkes state could learn these numbers too. But if these numbers are given directly, training starts from
good hand-made features. A count is the count of the metric, unless a type is named. Growth is in log2 units.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.features.tokens import LOG_AGE_OFFSET_S, Tokens

_STEPS: Final = 3
"""Number of newest tokens that are read individually."""
_SHARES: Final = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])
"""Fractions of the age, counted back from now, over which growth is measured."""
_SPANS_S: Final = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 18.0, 24.0]) * 3600.0
"""Spans in seconds, counted back from now, over which counts are measured."""
_MAX_SLOPE: Final = 8.0
_MIN_STEP: Final = 0.02


def n_summary(n_types: int) -> int:
    """Return the number of values in a summary."""
    return 6 + n_types + _STEPS * (5 + n_types) + len(_SHARES) + len(_SPANS_S)


def count_columns(n_types: int) -> list[int]:
    """Return the columns of a summary that hold the metric's log count, and then each type's count relative to the metric's count."""
    return [1, *range(6, 6 + n_types)]


def pace_columns(n_types: int) -> list[int]:
    """Return the columns of a summary that hold the metric's pace of growth.

    These columns hold the pace in the newest steps, over the fractions of the age, and in the last hours.
    """
    steps = [6 + n_types + step * (5 + n_types) for step in range(_STEPS)]
    first = 6 + n_types + _STEPS * (5 + n_types)
    shares = range(first, first + len(_SHARES) + len(_SPANS_S))
    return sorted([at + 3 for at in steps] + [at + 4 for at in steps] + list(shares))


def share_columns(n_types: int) -> list[int]:
    """Return the columns of a summary that hold the growth over the newest 1/2, 1/4, 1/8, 1/16 and 1/32 of the age."""
    first = 6 + n_types + _STEPS * (5 + n_types)
    return list(range(first, first + len(_SHARES)))


@numba.njit(cache=True, nogil=True)
def _log2(count):  # type: ignore[no-untyped-def]
    return np.log2(1.0 + max(count, 0.0))


@numba.njit(cache=True, nogil=True)
def _total_at(age_s, interval_s, cumulative, first, end):  # type: ignore[no-untyped-def]
    """Return the metric's count at an age. Within a token's interval, the count is assumed to grow evenly."""
    low, high = first, end
    while low < high:
        middle = (low + high) // 2
        if interval_s[middle, 2] <= age_s:
            low = middle + 1
        else:
            high = middle
    before = cumulative[low - 1] if low > first else 0.0
    if low == end:
        return before
    start, stop = interval_s[low, 1], interval_s[low, 2]
    if age_s <= start or stop <= start:
        return before
    return before + (cumulative[low] - before) * (age_s - start) / (stop - start)


@numba.njit(cache=True, nogil=True)
def _summarise(offsets, interval_s, counts, totals, age_s, metric, shares, spans_s, n_steps, out):  # type: ignore[no-untyped-def]
    n_types = counts.shape[1]
    for s in range(len(age_s)):
        first, end = offsets[s], offsets[s + 1]
        row = out[s]
        now = 0.0
        for k in metric:
            now += totals[s, k]
        row[0] = np.log2(age_s[s] + 60.0)
        row[1] = _log2(now)
        if end == first:
            continue
        row[2] = np.log2(1.0 + end - first)
        row[3] = np.log2(interval_s[first, 2] + 60.0)
        start = 0.0
        for k in metric:
            start += counts[first, k]
        row[4] = _log2(start)
        row[5] = np.log2((age_s[s] + 60.0) / (interval_s[end - 1, 2] + 60.0))
        at = 6
        for k in range(n_types):
            row[at + k] = _log2(totals[s, k]) - row[1]
        at += n_types
        # Tokens are read from the newest one back. ``left`` holds each type's count just after the token that is read.
        left = totals[s].copy()
        for step in range(n_steps):
            i = end - 1 - step
            if i > first:
                hours = (interval_s[i, 2] - interval_s[i - 1, 2]) / 3600.0
                older = np.log2((interval_s[i, 2] + LOG_AGE_OFFSET_S) / (interval_s[i - 1, 2] + LOG_AGE_OFFSET_S))
                after, added = 0.0, 0.0
                for k in metric:
                    after += left[k]
                    added += counts[i, k]
                grown = _log2(after) - _log2(after - added)
                row[at] = 1.0
                row[at + 1] = grown
                row[at + 2] = older
                row[at + 3] = min(grown / max(older, _MIN_STEP), _MAX_SLOPE)
                row[at + 4] = np.log2(1.0 + added / max(hours, 1 / 60)) - row[1]
                for k in range(n_types):
                    row[at + 5 + k] = _log2(left[k]) - _log2(left[k] - counts[i, k])
                    left[k] -= counts[i, k]
            at += 5 + n_types
        cumulative = np.empty(end - first)
        total = 0.0
        for i in range(first, end):
            for k in metric:
                total += counts[i, k]
            cumulative[i - first] = total
        spans = interval_s[first:end]
        for j in range(len(shares)):
            row[at + j] = row[1] - _log2(_total_at(age_s[s] * (1 - shares[j]), spans, cumulative, 0, end - first))
        at += len(shares)
        for j in range(len(spans_s)):
            before = _total_at(age_s[s] - spans_s[j], spans, cumulative, 0, end - first)
            row[at + j] = _log2(now - before) - row[1]


def summaries(tokens: Tokens, age_s: NDArray[np.float64], metric: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the summaries (S, n_summary) float32 of S token sequences.

    The sequences are read at the ages ``age_s`` (S,) float64 seconds. ``metric`` holds the indices of
    the types that the metric counts. The columns are, in this order:

    - log age, log count, number of tokens, age of the first token, count of the first token, and time since
      the newest token
    - each type's count relative to the metric
    - for each of the newest tokens: whether an earlier token exists, growth, step in log age, growth per log age,
      rate, and growth of each type
    - growth over the fractions of the age
    - counts of the last hours relative to the total
    """
    out = np.zeros((len(age_s), n_summary(tokens.counts.shape[1])), dtype=np.float32)
    _summarise(
        tokens.offsets,
        tokens.interval_s,
        tokens.counts,
        tokens.totals,
        age_s,
        np.array(metric, dtype=np.int64),
        _SHARES,
        _SPANS_S,
        _STEPS,
        out,
    )
    return out
