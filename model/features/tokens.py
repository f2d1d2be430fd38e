"""Converts a histogram to the tokens that the Mamba-Hawkes process reads.

A token is an interval of the video's age in which there was engagement. A token has an end, a width, and the gap
without engagement since the previous token. For each type, a token has the increment and the cumulative count. An
empty bin makes no token, and neither does a counter snapshot without new engagement. Both extend the ``gap`` of the
next token instead. The gap is the time that is known to be without engagement.

With counters, the interval starts at the previous snapshot. With events, the interval starts where the bin starts. So
events give the same tokens as counters that are read in every bin, starting from the time at which each type was
first seen.

A token depends only on rows of its own bin and of earlier bins. If the bin of the last token is still filling
(``pending``), this token's interval ends at ``now``. Each sequence ends with a *read token*, which represents the
time without engagement from the last token to ``now``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import EDGES_US
from model.engagement.cells import EVENT_MODE, Cells

N_SHARED: Final = 11
"""Number of features of a token that do not belong to one type."""
LOG_AGE_OFFSET_S: Final = 60.0
"""The constant c of the log-age clock log(t + c), in seconds. At ages far below c, the clock is nearly linear in age."""
_COUNT_SCALE: Final = 1 / 8
_TIME_SCALE: Final = 1 / 8


def n_features(n_types: int) -> int:
    """Return the number of features of a token: N_SHARED, plus the increment, cumulative count, rate and mask of each type."""
    return 4 * n_types + N_SHARED


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of S sequences, one sequence after the other, and the read token of each sequence.

    Attributes:
        offsets: (S + 1,) int64, start of each sequence in the arrays of n tokens.
        features: (n, F) float32.
        clock: (n, 2) float32, time since the previous token in hours and in log-age.
        interval_s: (n, 3) float64 seconds of age: end of the previous token, start of the interval, end of the
            interval.
        counts: (n, K) float64, increments of the K types.
        observed: (n, K) bool, whether each type has been observed so far.
        pending: (S,) bool, whether the bin of the last token is still filling.
        read_features: (S, F) float32, features of the read tokens.
        read_clock: (S, 2) float32, clock of the read tokens.
        totals: (S, K) float64, current counts.
        last_end_s: (S,) float64, end of the last token, or 0 if there is none.
        prefix: (n,) uint64, hash of everything that was read up to and including this token. Equal hashes mean that
            all tokens so far are equal.
        known_until_s: (S,) float64, age until which engagement is known: ``now`` for events, the newest reading for
            counters.
    """

    offsets: NDArray[np.int64]
    features: NDArray[np.float32]
    clock: NDArray[np.float32]
    interval_s: NDArray[np.float64]
    counts: NDArray[np.float64]
    observed: NDArray[np.bool_]
    pending: NDArray[np.bool_]
    read_features: NDArray[np.float32]
    read_clock: NDArray[np.float32]
    totals: NDArray[np.float64]
    last_end_s: NDArray[np.float64]
    prefix: NDArray[np.uint64]
    known_until_s: NDArray[np.float64]

    @property
    def reach(self) -> NDArray[np.float64]:
        """The summed audience of the accounts that acted in each token's interval, (n,) float64. An unknown audience is 0."""
        return np.asarray(np.expm1(self.features[:, 4 * self.counts.shape[1]].astype(np.float64) / _COUNT_SCALE))

    def take(self, rows: NDArray[np.int64]) -> Tokens:
        """Return the tokens of the sequences ``rows`` (s,), in this order."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        by_token = ("features", "clock", "interval_s", "counts", "observed", "prefix")
        taken = {name: getattr(self, name)[at if name in by_token else rows] for name in self.__slots__[1:]}
        return Tokens(offsets, **taken)

    @property
    def cold(self) -> NDArray[np.bool_]:
        """Whether each sequence is a cold start, (S,) bool.

        A sequence is a cold start if no count is known yet. A counter that was read as 0 is a known count.
        """
        n_types = self.counts.shape[1]
        known = self.read_features[:, 3 * n_types : 4 * n_types] > 0
        return np.asarray(~known.any(axis=1), dtype=np.bool_)


@numba.njit(cache=True)
def _mixed(digest, value):  # type: ignore[no-untyped-def]
    # This is one step of a multiply-and-shift hash. Two histories collide with a probability of about 1e-19.
    digest = (digest ^ np.uint64(value)) * np.uint64(0x9E3779B97F4A7C15)
    return digest ^ (digest >> np.uint64(29))


@numba.njit(cache=True)
def _fill_features(out, n_types, counts, cumulative, observed, reach, width_s, gap_s, end_s, wall_us, is_read):  # type: ignore[no-untyped-def]
    for k in range(n_types):
        out[k] = np.log1p(counts[k]) * _COUNT_SCALE
        out[n_types + k] = np.log1p(cumulative[k]) * _COUNT_SCALE
        out[2 * n_types + k] = np.log1p(3600.0 * counts[k] / (width_s + 1.0)) * _COUNT_SCALE
        out[3 * n_types + k] = 1.0 if observed[k] else 0.0
    at = 4 * n_types
    out[at] = np.log1p(reach) * _COUNT_SCALE
    out[at + 1] = np.log1p(width_s) * _TIME_SCALE
    out[at + 2] = np.log1p(gap_s) * _TIME_SCALE
    out[at + 3] = np.log1p(end_s) * _TIME_SCALE
    hour = 2 * np.pi * ((wall_us % 86_400_000_000) / 86_400_000_000)
    # 1970-01-01 was a Thursday, so the week starts on a Thursday here. Only the period matters, because the phase is learned.
    week = 2 * np.pi * ((wall_us % 604_800_000_000) / 604_800_000_000)
    out[at + 4] = np.sin(hour)
    out[at + 5] = np.cos(hour)
    out[at + 6] = np.sin(week)
    out[at + 7] = np.cos(week)
    out[at + 8] = 1.0 if is_read else 0.0
    out[at + 9] = 1.0 if gap_s > 0 else 0.0
    out[at + 10] = np.log((end_s + LOG_AGE_OFFSET_S) / (end_s - width_s - gap_s + LOG_AGE_OFFSET_S))


@numba.njit(cache=True)
def _tokenize(  # type: ignore[no-untyped-def]
    edges,
    offsets,
    bins,
    types,
    values,
    modes,
    reach,
    published_us,
    now_us,
    n_types,
    n_out,
    features,
    clock,
    interval_s,
    counts,
    observed,
    pending,
    read_features,
    read_clock,
    totals,
    last_end_s,
    prefix,
    known_until_s,
):
    at = 0
    increments = np.zeros(n_types)
    cumulative = np.zeros(n_types)
    seen = np.zeros(n_types, dtype=np.bool_)
    snapshot_end = np.zeros(n_types)
    for s in range(len(published_us)):
        cumulative[:] = 0
        seen[:] = False
        snapshot_end[:] = 0.0
        fed_by_events = False
        previous_end = 0.0
        digest = _mixed(np.uint64(n_types), published_us[s])
        now_age = (now_us[s] - published_us[s]) * 1e-6
        i = offsets[s]
        while i < offsets[s + 1]:
            index = bins[i]
            end = edges[index + 1] * 1e-6
            filling = end > now_age
            if filling:
                end = now_age
            start = end
            increments[:] = 0
            grew = False
            bin_reach = reach[i]
            while i < offsets[s + 1] and bins[i] == index:
                k = types[i]
                seen[k] = True
                digest = _mixed(_mixed(digest, index), (k << 2) + modes[i])
                digest = _mixed(_mixed(digest, values[i]), bin_reach)
                if modes[i] == EVENT_MODE:
                    fed_by_events = True
                    increment = float(values[i])
                    begin = edges[index] * 1e-6
                else:
                    increment = values[i] - cumulative[k]
                    begin = snapshot_end[k]
                    snapshot_end[k] = end
                if increment > 0:
                    increments[k] = increment
                    cumulative[k] += increment
                    start = min(start, begin)
                    grew = True
                i += 1
            if grew:
                start = max(start, previous_end)
                for k in range(n_types):
                    counts[at, k] = increments[k]
                    observed[at, k] = seen[k]
                interval_s[at, 0] = previous_end
                interval_s[at, 1] = start
                interval_s[at, 2] = end
                clock[at, 0] = (end - previous_end) / 3600
                clock[at, 1] = np.log((end + LOG_AGE_OFFSET_S) / (previous_end + LOG_AGE_OFFSET_S))
                _fill_features(
                    features[at],
                    n_types,
                    increments,
                    cumulative,
                    seen,
                    bin_reach,
                    end - start,
                    start - previous_end,
                    end,
                    published_us[s] + np.int64(end * 1e6),
                    False,
                )
                pending[s] = filling
                prefix[at] = digest
                previous_end = end
                at += 1
        n_out[s + 1] = at
        increments[:] = 0
        known_until = now_age if fed_by_events else min(now_age, max(previous_end, snapshot_end.max()))
        _fill_features(
            read_features[s],
            n_types,
            increments,
            cumulative,
            seen,
            0,
            max(now_age - known_until, 0.0),
            known_until - previous_end,
            now_age,
            now_us[s],
            True,
        )
        read_clock[s, 0] = (now_age - previous_end) / 3600
        read_clock[s, 1] = np.log((now_age + LOG_AGE_OFFSET_S) / (previous_end + LOG_AGE_OFFSET_S))
        for k in range(n_types):
            totals[s, k] = cumulative[k]
        last_end_s[s] = previous_end
        known_until_s[s] = known_until


def tokenize(cells: Cells, published_us: NDArray[np.int64], now_us: NDArray[np.int64], n_types: int) -> Tokens:
    """Return the tokens of every sequence. ``published_us`` and ``now_us`` are (S,) int64, with now >= published.

    ``cells`` may only hold what was known at each sequence's own ``now``. The caller must leave out all later
    engagement.
    """
    n, s, f = len(cells.bins), len(published_us), n_features(n_types)
    offsets = np.zeros(s + 1, dtype=np.int64)
    features, clock = np.zeros((n, f), np.float32), np.zeros((n, 2), np.float32)
    interval_s, counts = np.zeros((n, 3)), np.zeros((n, n_types))
    observed, pending = np.zeros((n, n_types), np.bool_), np.zeros(s, np.bool_)
    read_features, read_clock = np.zeros((s, f), np.float32), np.zeros((s, 2), np.float32)
    totals, last_end_s = np.zeros((s, n_types)), np.zeros(s)
    prefix, known_until_s = np.zeros(n, np.uint64), np.zeros(s)
    _tokenize(
        EDGES_US,
        cells.offsets,
        cells.bins,
        cells.types,
        cells.values,
        cells.modes,
        cells.reach,
        published_us,
        now_us,
        n_types,
        offsets,
        features,
        clock,
        interval_s,
        counts,
        observed,
        pending,
        read_features,
        read_clock,
        totals,
        last_end_s,
        prefix,
        known_until_s,
    )
    n = int(offsets[-1])
    return Tokens(
        offsets,
        features[:n],
        clock[:n],
        interval_s[:n],
        counts[:n],
        observed[:n],
        pending,
        read_features,
        read_clock,
        totals,
        last_end_s,
        prefix[:n],
        known_until_s,
    )
