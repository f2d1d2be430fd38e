"""Simple point processes on tokens. The processes forecast each token's counts and compute the log-likelihood of these counts.

``model.features.tokens`` defines tokens. A token covers a gap without engagement and the interval after the gap. For
each token, a point process gives the expected count of one engagement type in the gap and in the interval. A point
process reads the video's earlier tokens and the bounds of the current token, but never the current token's counts.

    pace        The rate g(age) is constant in each step of log-age. This rate is multiplied by the video's own pace
                (A + n) / (A + m). Here n is the video's count so far, m is the count that g expects, and A is a
                prior. Both n and m decay at rate d per unit of log-age.
    Hawkes      The intensity is mu0 + mu1 / (age + 1 min) + a0 b e^(-b age) + sum over types l of a_l S_l. S_l is the
                sum of b e^(-b s) over the video's engagements of type l. Here s is the time since the engagement.
                Engagements are spread uniformly over their interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from model.features.tokens import LOG_AGE_OFFSET_S, Tokens
from model.mhp.likelihood import negative_binomial_logpmf

Floats = NDArray[np.float64]

POISSON: Final = float("inf")
"""Dispersion of the Poisson distribution, which has no over-dispersion."""
_COARSE: Final = (0.5, 2.0, 8.0)
"""Candidate dispersions for every setting of a point process.

``_FINE`` contains the candidate dispersions for the best setting.
"""
_FINE: Final = tuple(np.geomspace(0.1, 100, 16).tolist())
_KNOTS: Final = np.log(LOG_AGE_OFFSET_S) + 0.25 * np.arange(72)
"""Bounds of the steps of g, in log(age + offset). The last bound is at an age of about 100 years."""
_PRIORS: Final = (0.3, 3.0, 30.0, 300.0)
_FORGET: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_ROUNDS: Final = 3
_DECAYS_PER_S: Final = tuple((1 / np.geomspace(10, 3e6, 20)).tolist())
_EM_STEPS: Final = 150
_LEAST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Means:
    """Expected counts of one type in the gap and the interval of n tokens, as two float64 arrays of shape (n,)."""

    gap: Floats
    active: Floats


def log_likelihood(tokens: Tokens, kind: int, means: Means, dispersion: float) -> Floats:
    """Return the log-likelihood (n,) of type ``kind`` in each of n tokens.

    The value is NaN in tokens where the type is not observed yet.
    """
    previous, start, _ = tokens.interval_s.T
    count = torch.from_numpy(tokens.counts[:, kind])
    gap, active = (torch.from_numpy(np.maximum(mean, _LEAST)) for mean in (means.gap, means.active))
    if dispersion == POISSON:
        gap_value, interval = -gap, count * torch.log(active) - active - torch.lgamma(count + 1)
    else:
        r = torch.tensor(dispersion, dtype=torch.float64)
        gap_value, interval = (
            negative_binomial_logpmf(torch.zeros_like(gap), gap, r),
            negative_binomial_logpmf(count, active, r),
        )
    value = np.where(start > previous, gap_value.numpy(), 0.0) + interval.numpy()
    return np.where(tokens.observed[:, kind], value, np.nan)


def _best(tokens: Tokens, kind: int, means: Means, dispersions: Sequence[float]) -> tuple[float, float]:
    """Return the highest total log-likelihood and the dispersion that gives it."""
    return max((float(np.nansum(log_likelihood(tokens, kind, means, r))), r) for r in dispersions)


@numba.njit(cache=True)
def _pace(offsets, x, g, counts, observed, prior, forget, gap, active, scale):  # type: ignore[no-untyped-def]
    for v in range(len(offsets) - 1):
        n, m = 0.0, 0.0
        for i in range(offsets[v], offsets[v + 1]):
            pace = (prior + n) / (prior + m)
            scale[i] = pace
            gap[i] = pace * (g[i, 1] - g[i, 0])
            active[i] = pace * (g[i, 2] - g[i, 1])
            kept = np.exp(-forget * (x[i, 2] - x[i, 0]))
            n, m = n * kept, m * kept
            if observed[i]:
                n += counts[i]
                m += g[i, 2] - g[i, 0]


@numba.njit(cache=True)
def _spread(x, knots, rows, value, out):  # type: ignore[no-untyped-def]
    # For each row i, adds value[i] times the length of the overlap of [x[i, 0], x[i, 1]] and step j to out[j].
    step = knots[1] - knots[0]
    for i in rows:
        first = int((x[i, 0] - knots[0]) / step)
        for j in range(max(first, 0), len(out)):
            if knots[j] >= x[i, 1]:
                break
            low, high = max(x[i, 0], knots[j]), min(x[i, 1], knots[j] + step)
            if high > low:
                out[j] += value[i] * (high - low)


class Pace:
    """The pace process for one engagement type.

    With ``overdispersed``, counts are negative binomial and the dispersion is fitted. Otherwise counts are Poisson.
    """

    def __init__(self, kind: int, *, overdispersed: bool) -> None:
        self._kind, self._overdispersed = kind, overdispersed
        self._rate, self._prior, self._forget, self._dispersion = np.zeros(len(_KNOTS)), 1.0, 0.0, POISSON

    def fit(self, tokens: Tokens) -> Self:
        """Choose the prior, the forgetting and the dispersion with the highest likelihood. Return ``self``.

        For each pair of prior and forgetting in a grid, g and the videos' paces are fitted alternately.
        """
        kind = self._kind
        x = np.log(tokens.interval_s + LOG_AGE_OFFSET_S)
        rows = np.flatnonzero(tokens.observed[:, kind])
        counted, whole = np.zeros(len(_KNOTS)), np.ascontiguousarray(x[:, [0, 2]])
        _spread(
            np.ascontiguousarray(x[:, 1:]),
            _KNOTS,
            rows,
            tokens.counts[:, kind] / np.maximum(x[:, 2] - x[:, 1], 1e-9),
            counted,
        )
        best = -np.inf
        for prior in _PRIORS:
            for forget in _FORGET:
                scale = np.ones(len(x))
                for _ in range(_ROUNDS):
                    exposed = np.zeros(len(_KNOTS))
                    _spread(whole, _KNOTS, rows, scale, exposed)
                    rate = (counted + 1e-3) / (exposed + 1e-3)
                    means, scale = self._means(tokens, x, rate, prior, forget)
                value, _ = _best(tokens, kind, means, _COARSE if self._overdispersed else (POISSON,))
                if value > best:
                    best, self._rate, self._prior, self._forget = value, rate, prior, forget
        if self._overdispersed:
            means, _ = self._means(tokens, x, self._rate, self._prior, self._forget)
            _, self._dispersion = _best(tokens, kind, means, _FINE)
        return self

    def log_likelihood(self, tokens: Tokens) -> Floats:
        """Return the log-likelihood (n,) of each token. The value is NaN in tokens where the type is not observed yet."""
        x = np.log(tokens.interval_s + LOG_AGE_OFFSET_S)
        means, _ = self._means(tokens, x, self._rate, self._prior, self._forget)
        return log_likelihood(tokens, self._kind, means, self._dispersion)

    def _means(self, tokens: Tokens, x: Floats, rate: Floats, prior: float, forget: float) -> tuple[Means, Floats]:
        ends = np.append(_KNOTS, 2 * _KNOTS[-1] - _KNOTS[-2])
        g = np.interp(x, ends, np.append(0.0, np.cumsum(rate * np.diff(ends))))
        gap, active, scale = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x))
        kind = self._kind
        _pace(
            tokens.offsets,
            x,
            g,
            np.ascontiguousarray(tokens.counts[:, kind]),
            np.ascontiguousarray(tokens.observed[:, kind]),
            prior,
            forget,
            gap,
            active,
            scale,
        )
        return Means(gap, active), scale


@numba.njit(cache=True)
def _excitation(offsets, interval_s, counts, decay, offset_s, out):  # type: ignore[no-untyped-def]
    # Fills ``out`` (2, n, 3 + K) with the expected count that each term of the intensity contributes with weight 1, for
    # K types. The first axis is gap and interval. The second axis is the token. The third axis is the term.
    n_types = counts.shape[1]
    state = np.zeros(n_types)
    for v in range(len(offsets) - 1):
        state[:] = 0.0
        for i in range(offsets[v], offsets[v + 1]):
            previous, start, end = interval_s[i]
            edges = (previous, start, end)
            for part in range(2):
                low, high = edges[part], edges[part + 1]
                out[part, i, 0] = high - low
                out[part, i, 1] = np.log((high + offset_s) / (low + offset_s))
                out[part, i, 2] = np.exp(-decay * low) - np.exp(-decay * high)
                passed = np.exp(-decay * (low - previous)) - np.exp(-decay * (high - previous))
                for k in range(n_types):
                    out[part, i, 3 + k] = state[k] * passed
            width = decay * (end - start)
            share = -np.expm1(-width) / width if width > 1e-9 else 1.0
            kept = np.exp(-decay * (end - previous))
            for k in range(n_types):
                state[k] = state[k] * kept + counts[i, k] * share


class ExponentialHawkes:
    """The Hawkes process for one engagement type.

    With ``overdispersed``, counts are negative binomial and the dispersion is fitted. Otherwise counts are Poisson.
    """

    def __init__(self, kind: int, *, overdispersed: bool) -> None:
        self._kind, self._overdispersed = kind, overdispersed
        self._decay, self._weights, self._dispersion = 1.0, np.zeros(0), POISSON

    def fit(self, tokens: Tokens) -> Self:
        """Choose the decay, the weights and the dispersion with the highest likelihood. Return ``self``.

        For each decay in a grid, the fit computes the weights that maximise the Poisson likelihood. Then the fit
        chooses the best decay and the best dispersion.
        """
        best = -np.inf
        for decay in _DECAYS_PER_S:
            terms = self._terms(tokens, decay)
            weights = self._maximise(tokens, terms)
            means = Means(*(terms @ weights))
            value, _ = _best(tokens, self._kind, means, _COARSE if self._overdispersed else (POISSON,))
            if value > best:
                best, self._decay, self._weights = value, decay, weights
        if self._overdispersed:
            means = Means(*(self._terms(tokens, self._decay) @ self._weights))
            _, self._dispersion = _best(tokens, self._kind, means, _FINE)
        return self

    def log_likelihood(self, tokens: Tokens) -> Floats:
        """Return the log-likelihood (n,) of each token. The value is NaN in tokens where the type is not observed yet."""
        means = Means(*(self._terms(tokens, self._decay) @ self._weights))
        return log_likelihood(tokens, self._kind, means, self._dispersion)

    @staticmethod
    def _terms(tokens: Tokens, decay: float) -> Floats:
        out = np.empty((2, len(tokens.counts), 3 + tokens.counts.shape[1]))
        _excitation(tokens.offsets, tokens.interval_s, tokens.counts, decay, LOG_AGE_OFFSET_S, out)
        return out

    def _maximise(self, tokens: Tokens, terms: Floats) -> Floats:
        """Return the weights >= 0 that maximise the Poisson likelihood.

        The method is expectation-maximisation. Each step divides every count among the terms. Then the step scales each
        term to the counts that the term received.
        """
        observed = tokens.observed[:, self._kind]
        total = terms[:, observed].sum((0, 1)) + _LEAST
        count = tokens.counts[:, self._kind]
        rows = observed & (count > 0)
        x, n = terms[1, rows], count[rows]
        weights = n.sum() / (total * len(total))
        for _ in range(_EM_STEPS):
            weights = weights * ((n / np.maximum(x @ weights, _LEAST)) @ x) / total
        return np.asarray(weights, np.float64)
