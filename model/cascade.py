"""The expected growth of a self-exciting cascade, following SEISMIC (Zhao et al. 2015) and TiDeH (Kobayashi and Lambiotte 2016).

Event i has a reach r_i. The event triggers further events, its children, at the rate p(t) m_i phi(t - t_i):

    phi(s)  = (theta / c) (1 + s / c)^-(1 + theta)                      Omori kernel, integral 1
    m_i     = ((1 + r_i) / typical)^beta                                mark of an event
    m_post  = M (1 + followers)^b                                       mark of the post itself
    p(t)    = p a(t) h(t)
    a(t)    = (1 + t / 1 h)^-kappa exp(-t / tau)
    h(t)    = exp of two harmonics of the hour of day

The infectiousness p of a cascade is its observed count divided by the count that is expected for p = 1. A gamma prior
with the parameters A and B shrinks this ratio:

    p = (A + sum w n) / (B + sum w E)

The sums run over the bins up to ``now``. n is the observed count of a bin, and E is its expected count for p = 1. The
ratio is computed twice. p_whole uses the weights w = (t / now)^w1. p_recent uses the exponent w1 + 2, which
emphasises the recent past. The forecast continues the trend from p_whole to p_recent:

    p = p_recent (p_recent / p_whole)^eta

The expected count x_j of a future bin j includes all generations of children, not only the children of observed
events:

    x_j = p_j (e_j + sum over future bins i <= j of mean(m) x_i K_ji)

    p_j     p(t) in bin j
    e_j     excitation of bin j by the post and by the observed events
    K_ji    share of the children of an event in bin i that fall into bin j

As in SEISMIC, the expectation is corrected with the help of training cascades. Their true growth is regressed on the
expected growth, the count, the age and the horizon.

``index_builder.cascade.fit`` fits the constants. The forecast head uses the corrected expectation as an additional
ramp. The head also gets a few features of the cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US
from model.engagement.video import Video
from model.features.tokens import Tokens
from model.growth.curve_kernels import growth_horizons_us
from model.quantiles.head import N_GRID, grid_s, on_grid_at

RATIO: Final = 1 / 12
"""Width of a bin as a fraction of the age at the bin. The expectation is computed in these bins."""
NARROWEST_S: Final = 20.0
"""Smallest width of a bin, in seconds."""
CONSTANTS: Final = (
    "log_c",
    "theta",
    "beta",
    "log_post",
    "followers",
    "log_kappa",
    "log_tau_h",
    "log_prior",
    "log_prior_rate",
    "log_weight",
    "trend",
    "log_mark",
    "log_mark_prior",
    "cos_day",
    "sin_day",
    "cos_half",
    "sin_half",
    "typical_reach",
    "usual_followers",
    "usual_mark",
)
"""Names of the constants, in the order of ``Cascade.constants``. The last three constants are means over the training cascades."""
N_TERMS: Final = 9
"""Number of terms of the correction; see ``terms``."""
N_CASCADE: Final = 10
"""Number of cascade features for the head: the growth at each of ``growth_horizons_us``, the log infectiousness and its trend."""
DAY_S: Final = 86_400.0
TREND_LIMIT: Final = 2.0
MAX_COUNT: Final = 1e7
"""Upper limit of the expected count in one bin."""
MAX_BRANCHING: Final = 0.98
"""Upper limit of the expected number of children of an event after ``now`` (its branching ratio). With a branching
ratio of one or more, a cascade would grow without end. No real cascade does this, so a larger ratio in the past is
not extrapolated."""


def bin_edges(age_s: float, horizon_s: float) -> tuple[NDArray[np.float64], int]:
    """Return the bin edges (B + 1,) in seconds, and the number of bins before ``age_s``.

    The edges run from 0 to ``age_s + horizon_s``. One of the edges is ``age_s``.
    """
    edges = np.empty(_max_bins(age_s, horizon_s))
    past = _write_edges(0.0, age_s, edges, 0)
    stop = _write_edges(age_s, age_s + horizon_s, edges, past)
    return edges[: stop + 1].copy(), past


@numba.njit(cache=True, nogil=True)
def _max_bins(age_s, horizon_s):  # type: ignore[no-untyped-def]
    return int(1 / RATIO + np.log1p(age_s + horizon_s) / np.log1p(RATIO)) + 4


@numba.njit(cache=True, nogil=True)
def _write_edges(low, high, edges, at):  # type: ignore[no-untyped-def]
    """Write edges from ``low`` to ``high`` into ``edges``, starting at index ``at``. Return the index of the last edge."""
    edges[at] = low
    while edges[at] < high:
        edges[at + 1] = edges[at] + max(NARROWEST_S, edges[at] * RATIO)
        at += 1
    edges[at] = high
    return at


@numba.njit(cache=True, nogil=True)
def _mean_wave(low, high, period_s, sine):  # type: ignore[no-untyped-def]
    """Return the mean of a cosine (or sine) with the given period over an interval."""
    w = 2 * np.pi / period_s
    if sine:
        return (np.cos(w * low) - np.cos(w * high)) / (w * (high - low))
    return (np.sin(w * high) - np.sin(w * low)) / (w * (high - low))


@numba.njit(cache=True, nogil=True)
def _spread(interval_s, number, reach, edges, past, beta, typical, counts, marks):  # type: ignore[no-untyped-def]
    """Spread the engagement of each token evenly over the past bins that its interval covers. Return the total engagement."""
    now, first = 0.0, 0
    for i in range(len(number)):
        if number[i] <= 0:
            continue
        now += number[i]
        each = np.exp(beta * (np.log1p(reach[i] / number[i]) - typical))
        start, end = interval_s[i, 1], min(interval_s[i, 2], edges[past])
        while first < past - 1 and edges[first + 1] <= start:
            first += 1
        j, done = first, False
        while not done:
            done = end <= edges[j + 1] or j == past - 1
            stop = end if done else edges[j + 1]
            share = 1.0 if done and j == first else (stop - max(edges[j], start)) / (end - start)
            counts[j] += share * number[i]
            marks[j] += share * number[i] * each
            j += 1
    return now


@numba.njit(cache=True, nogil=True)
def _twice_integrated(edges, bins, c, theta):  # type: ignore[no-untyped-def]
    """Integrate the kernel twice, from each edge to each later edge. Return an array of shape (bins + 1, bins + 1)."""
    twice = np.zeros((bins + 1, bins + 1))
    for i in range(bins + 1):
        for j in range(i):
            x = edges[i] - edges[j]
            twice[i, j] = x - c * (np.exp((1 - theta) * np.log1p(x / c)) - 1) / (1 - theta)
    return twice


@numba.njit(cache=True, nogil=True)
def _expect(  # type: ignore[no-untyped-def]
    offsets, interval_s, number, reach, age_s, followers, published_s, constants, correction, grid, out, process
):
    (
        log_c,
        theta,
        beta,
        log_post,
        by_followers,
        log_kappa,
        log_tau_h,
        log_prior,
        log_prior_rate,
        log_weight,
        trend,
        log_mark,
        log_mark_prior,
        cos_day,
        sin_day,
        cos_half,
        sin_half,
        typical,
        usual_followers,
        usual_mark,
    ) = constants
    c, kappa, tau_h = np.exp(log_c), np.exp(log_kappa), np.exp(log_tau_h)
    prior, prior_rate, power, counted = (
        np.exp(log_prior),
        np.exp(log_prior_rate),
        np.exp(log_weight),
        np.exp(log_mark_prior),
    )
    last = len(grid) - 1
    for s in range(len(age_s)):
        age = age_s[s]
        edges = np.empty(_max_bins(age, grid[last]))
        past = _write_edges(0.0, age, edges, 0)
        bins = _write_edges(age, age + grid[last], edges, past)
        counts, marks = np.zeros(max(past, 1)), np.zeros(max(past, 1))
        now = _spread(
            interval_s[offsets[s] : offsets[s + 1]],
            number[offsets[s] : offsets[s + 1]],
            reach[offsets[s] : offsets[s + 1]],
            edges,
            past,
            beta,
            typical,
            counts,
            marks,
        )
        twice = _twice_integrated(edges, bins, c, theta)
        post = np.exp(log_post + by_followers * (followers[s] - usual_followers))
        pace, excitation = np.empty(bins), np.empty(bins)
        survived = 1.0
        for j in range(bins):
            low, high = edges[j], edges[j + 1]
            from_s, to_s = published_s[s] + low, published_s[s] + high
            rhythm = (
                cos_day * _mean_wave(from_s, to_s, DAY_S, False)
                + sin_day * _mean_wave(from_s, to_s, DAY_S, True)
                + cos_half * _mean_wave(from_s, to_s, DAY_S / 2, False)
                + sin_half * _mean_wave(from_s, to_s, DAY_S / 2, True)
            )
            hours = (low + high) / 7200.0
            pace[j] = np.exp(rhythm - hours / tau_h - kappa * np.log1p(hours))
            left = np.exp(-theta * np.log1p(high / c))
            total = post * (survived - left)
            survived = left
            for i in range(min(past, j + 1)):
                if marks[i] > 0:
                    total += marks[i] * _share(twice, edges, i, j)
            excitation[j] = total
        seen, expected, seen_late, expected_late, marked = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(past):
            position = (edges[j] + edges[j + 1]) / (2 * age)
            weight = position**power
            seen += weight * counts[j]
            expected += weight * excitation[j] * pace[j]
            seen_late += weight * position**2 * counts[j]
            expected_late += weight * position**2 * excitation[j] * pace[j]
            marked += marks[j]
        whole = (prior + seen) / (prior_rate + expected)
        recent = (prior + seen_late) / (prior_rate + expected_late)
        turn = min(max(np.log(recent / whole), -TREND_LIMIT), TREND_LIMIT)
        infectious = recent * np.exp(trend * turn)
        mark = np.exp(log_mark) * (marked + counted * usual_mark) / (now + counted)
        grown, at = 0.0, 1
        future = np.zeros(bins - past)
        out[s, 0] = 0.0
        level, age_term = np.log2(1 + now), np.log2(1 + age)
        highest = 0.0
        for j in range(past, bins):
            rate = min(infectious * pace[j], MAX_BRANCHING / mark)
            total = excitation[j]
            for i in range(past, j):
                total += mark * future[i - past] * _share(twice, edges, i, j)
            own = 1 - rate * mark * _share(twice, edges, j, j)
            future[j - past] = min(max(rate * total / own, 0.0), MAX_COUNT)
            while at <= last and (age + grid[at] <= edges[j + 1] or j == bins - 1):
                part = min(max((age + grid[at] - edges[j]) / (edges[j + 1] - edges[j]), 0.0), 1.0)
                growth = np.log2((1 + now + grown + part * future[j - past]) / (1 + now))
                h = np.log2(1 + grid[at])
                fitted = (
                    correction[0]
                    + correction[1] * growth
                    + correction[2] * growth**2
                    + correction[3] * level
                    + correction[4] * h
                    + correction[5] * age_term
                    + correction[6] * growth * level
                    + correction[7] * growth * h
                    + correction[8] * growth * age_term
                )
                highest = max(highest, fitted)
                out[s, at] = highest
                at += 1
            grown += future[j - past]
        process[s, 0], process[s, 1] = np.log2(infectious), turn


@numba.njit(cache=True, nogil=True)
def _share(twice, edges, i, j):  # type: ignore[no-untyped-def]
    """Return the share of an event's children that fall into bin j, for an event at a random time in bin i (j >= i)."""
    inside = twice[j + 1, i] - twice[j, i] - twice[j + 1, i + 1]
    if j > i:
        inside += twice[j, i + 1]
    return max(inside / (edges[i + 1] - edges[i]), 0.0)


def terms(
    growth: NDArray[np.float64],
    value_now: NDArray[np.float64],
    horizon_s: NDArray[np.float64],
    age_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the regressors (Q, N_TERMS) float64 that correct an expected ``growth`` (Q,), which is in log2 units."""
    v, h, a = (np.log2(1 + x) for x in (value_now, horizon_s, age_s))
    return np.stack([np.ones_like(growth), growth, growth**2, v, h, a, growth * v, growth * h, growth * a], axis=1)


UNCORRECTED: Final = np.eye(1, N_TERMS, 1)[0]
"""The correction that leaves the growth unchanged."""


def followers_of(videos: Sequence[Video]) -> NDArray[np.float64]:
    """Return an array (V,) with the number of followers of each video's creator. An unknown number is 0."""
    return np.array([video.creator_followers or 0.0 for video in videos], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Cascade:
    """A fitted self-exciting cascade process.

    Attributes:
        constants: (len(CONSTANTS),) float64.
        correction: (N_TERMS,) float64 coefficients of the correction.
        max_horizon_s: longest horizon in seconds.
    """

    constants: NDArray[np.float64]
    correction: NDArray[np.float64]
    max_horizon_s: float

    def features(self, growth: NDArray[np.float32], process: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cascade features for the head, a float32 array of shape (S, N_CASCADE).

        Args:
            growth: (S, N_GRID + 1) expected growth on the head's grid.
            process: (S, 2) states of the cascade processes, as returned by ``growth``.
        """
        horizon_s = growth_horizons_us(round(self.max_horizon_s * SECOND_US)) / SECOND_US
        at = on_grid_at(growth, np.broadcast_to(horizon_s, (len(growth), len(horizon_s))), self.max_horizon_s)
        return np.concatenate([at, process], axis=1).astype(np.float32)

    def growth(
        self,
        tokens: Tokens,
        age_s: NDArray[np.float64],
        metric: tuple[int, ...],
        followers: NDArray[np.float64],
        published_s: NDArray[np.float64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the expected growth of S cascades, and the state of each cascade process.

        Args:
            tokens: the tokens of S sequences.
            age_s: (S,) ages at ``now`` in seconds.
            metric: indices of the types that the metric counts.
            followers: (S,) followers of the creators, 0 if unknown.
            published_s: (S,) publication times in seconds UTC.

        Returns:
            The growth (S, N_GRID + 1) float32 in log2 units, which never decreases along the head's grid of horizons. The
            state of each process (S, 2) float32, which is the log2 infectiousness and the log of its recent change.
        """
        out, process = np.zeros((len(age_s), N_GRID + 1)), np.zeros((len(age_s), 2))
        number = np.ascontiguousarray(tokens.counts[:, list(metric)].sum(1))
        _expect(
            tokens.offsets,
            tokens.interval_s,
            number,
            tokens.reach,
            age_s,
            np.log1p(followers),
            published_s % DAY_S,
            tuple(self.constants.tolist()),
            self.correction,
            grid_s(self.max_horizon_s),
            out,
            process,
        )
        return out.astype(np.float32), process.astype(np.float32)
