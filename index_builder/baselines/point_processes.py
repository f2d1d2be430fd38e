"""Simple point processes on tokens. The processes forecast each token's counts and compute the log-likelihood of these counts.

``model.features.tokens`` defines tokens, and ``index_builder.samples.exposure`` what is scored of them: a gap without
engagement and the interval after the gap, or a silence. For each of these rows, a point process gives the expected count
of one engagement type in the gap and in the interval. A point process reads the video's earlier tokens and the bounds of
the current row, but never the current row's counts. Over-dispersed processes mix their expectations as the Mamba-Hawkes
process does (``model.mhp.likelihood``), so the probabilities of all possible next tokens sum to 1.

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

from index_builder.samples.exposure import Exposure
from model.features.tokens import LOG_AGE_OFFSET_S, Tokens
from model.mhp.likelihood import gap_and_count_logpmf

Floats = NDArray[np.float64]

POISSON: Final = float("inf")
"""Dispersion of the Poisson distribution, which has no over-dispersion."""
_COARSE: Final = (0.5, 2.0, 8.0)
"""Candidate dispersions for every setting of a point process.

``_FINE`` contains the candidate dispersions for the best setting.
"""
_FINE: Final = tuple(np.geomspace(0.02, 100, 20).tolist())
_FACTORS: Final = tuple(np.geomspace(0.5, 4, 13).tolist())
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
    """Expected counts of one type in the gap and the interval of m rows, as two float64 arrays of shape (m,).

    ``dispersion`` is the dispersion of their mixture.
    """

    gap: Floats
    active: Floats
    dispersion: float = POISSON

    def scaled(self, factor: float, dispersion: float) -> Means:
        """Return the means multiplied by ``factor``, with another dispersion."""
        return Means(self.gap * factor, self.active * factor, dispersion)


def log_likelihood(exposure: Exposure, kind: int, means: Means) -> Floats:
    """Return the log-likelihood (m,) of type ``kind`` in each of m rows. The value is 0 in rows where the type is not scored."""
    out = np.zeros(len(exposure.counts))
    rows = exposure.scored[:, kind]
    count, gap, active = (
        torch.from_numpy(a[rows]) for a in (exposure.counts[:, kind], means.gap, np.maximum(means.active, _LEAST))
    )
    out[rows] = gap_and_count_logpmf(count, gap, active, torch.tensor(means.dispersion)).numpy()
    return out


def _best(exposure: Exposure, kind: int, means: Means, dispersions: Sequence[float]) -> tuple[float, float]:
    """Return the highest total log-likelihood and the dispersion that gives it."""
    return max((float(log_likelihood(exposure, kind, means.scaled(1.0, r)).sum()), r) for r in dispersions)


def _best_mixture(exposure: Exposure, kind: int, means: Means) -> tuple[float, float]:
    """Return the factor of the means and the dispersion with the highest likelihood."""
    factor, dispersion = 1.0, 1.0
    for _ in range(_ROUNDS):
        _, dispersion = _best(exposure, kind, means.scaled(factor, 1.0), _FINE)
        values = [float(log_likelihood(exposure, kind, means.scaled(f, dispersion)).sum()) for f in _FACTORS]
        factor = _FACTORS[int(np.argmax(values))]
    return factor, dispersion


@numba.njit(cache=True)
def _paces(offsets, x, g, counts, scored, prior, forget, out):  # type: ignore[no-untyped-def]
    # Fills ``out`` (m,) with the pace before each row. ``x`` and ``g`` (m, 2) are taken at the token before the row and
    # at the row's end.
    for v in range(len(offsets) - 1):
        n, m = 0.0, 0.0
        for i in range(offsets[v], offsets[v + 1]):
            out[i] = (prior + n) / (prior + m)
            kept = np.exp(-forget * (x[i, 1] - x[i, 0]))
            n, m = n * kept, m * kept
            if scored[i]:
                n += counts[i]
                m += g[i, 1] - g[i, 0]


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

    With ``overdispersed``, counts are negative binomial. Then the dispersion and a common factor of the means are fitted.
    Otherwise counts are Poisson.
    """

    def __init__(self, kind: int, *, overdispersed: bool) -> None:
        self._kind, self._overdispersed = kind, overdispersed
        self._rate, self._prior, self._forget = np.zeros(len(_KNOTS)), 1.0, 0.0
        self._factor, self._dispersion = 1.0, POISSON

    def fit(self, tokens: Tokens, exposure: Exposure) -> Self:
        """Choose the prior, the forgetting and the mixture with the highest likelihood. Return ``self``.

        For each pair of prior and forgetting in a grid, g and the videos' paces are fitted alternately.
        """
        kind = self._kind
        x = np.log(np.nan_to_num(exposure.bounds_s[:, kind]) + LOG_AGE_OFFSET_S)
        rows = np.flatnonzero(exposure.scored[:, kind])
        counted, whole = np.zeros(len(_KNOTS)), np.ascontiguousarray(x[:, [0, 2]])
        _spread(
            np.ascontiguousarray(x[:, 1:]),
            _KNOTS,
            rows,
            exposure.counts[:, kind] / np.maximum(x[:, 2] - x[:, 1], 1e-9),
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
                    means, scale = self._means(tokens, exposure, rate, prior, forget)
                value, _ = _best(exposure, kind, means, _COARSE if self._overdispersed else (POISSON,))
                if value > best:
                    best, self._rate, self._prior, self._forget = value, rate, prior, forget
        if self._overdispersed:
            means, _ = self._means(tokens, exposure, self._rate, self._prior, self._forget)
            self._factor, self._dispersion = _best_mixture(exposure, kind, means)
        return self

    def means(self, tokens: Tokens, exposure: Exposure) -> Means:
        """Return the means of each row."""
        means, _ = self._means(tokens, exposure, self._rate, self._prior, self._forget)
        return means.scaled(self._factor, self._dispersion)

    def _means(
        self, tokens: Tokens, exposure: Exposure, rate: Floats, prior: float, forget: float
    ) -> tuple[Means, Floats]:
        """Return the means and the pace (m,) before each row."""
        ends = np.append(_KNOTS, 2 * _KNOTS[-1] - _KNOTS[-2])
        total = np.append(0.0, np.cumsum(rate * np.diff(ends)))
        x = np.log(exposure.bounds_s[:, self._kind] + LOG_AGE_OFFSET_S)
        own = np.log(np.stack([exposure.previous_s, tokens.interval_s[exposure.token, 2]], axis=1) + LOG_AGE_OFFSET_S)
        scale = np.zeros(len(x))
        _paces(
            exposure.offsets,
            own,
            np.interp(own, ends, total),
            np.ascontiguousarray(exposure.counts[:, self._kind]),
            np.ascontiguousarray(exposure.scored[:, self._kind]),
            prior,
            forget,
            scale,
        )
        gap, active = scale * np.diff(np.interp(x, ends, total), axis=1).T
        return Means(gap, active), scale


@numba.njit(cache=True)
def _excitation(offsets, previous_s, end_s, start_s, bounds_s, counts, decay, offset_s, out):  # type: ignore[no-untyped-def]
    # Fills ``out`` (2, m, 3 + K) with the expected count that each term of the intensity contributes with weight 1, for
    # K types. The first axis is gap and interval. The second axis is the row. The third axis is the term.
    n_types = counts.shape[1]
    state = np.zeros(n_types)
    for v in range(len(offsets) - 1):
        state[:] = 0.0
        for i in range(offsets[v], offsets[v + 1]):
            previous = previous_s[i]
            for part in range(2):
                low, high = bounds_s[i, part], bounds_s[i, part + 1]
                out[part, i, 0] = high - low
                out[part, i, 1] = np.log((high + offset_s) / (low + offset_s))
                out[part, i, 2] = np.exp(-decay * low) - np.exp(-decay * high)
                passed = np.exp(-decay * (low - previous)) - np.exp(-decay * (high - previous))
                for k in range(n_types):
                    out[part, i, 3 + k] = state[k] * passed
            width = decay * (end_s[i] - start_s[i])
            share = -np.expm1(-width) / width if width > 1e-9 else 1.0
            kept = np.exp(-decay * (end_s[i] - previous))
            for k in range(n_types):
                state[k] = state[k] * kept + counts[i, k] * share


class ExponentialHawkes:
    """The Hawkes process for one engagement type.

    With ``overdispersed``, counts are negative binomial. Then the dispersion and a common factor of the means are fitted.
    Otherwise counts are Poisson.
    """

    def __init__(self, kind: int, *, overdispersed: bool) -> None:
        self._kind, self._overdispersed = kind, overdispersed
        self._decay, self._weights, self._factor, self._dispersion = 1.0, np.zeros(0), 1.0, POISSON

    def fit(self, tokens: Tokens, exposure: Exposure) -> Self:
        """Choose the decay, the weights and the mixture with the highest likelihood. Return ``self``.

        For each decay in a grid, the fit computes the weights that maximise the Poisson likelihood. Then the fit
        chooses the best decay and the best mixture.
        """
        best = -np.inf
        for decay in _DECAYS_PER_S:
            terms = self._terms(tokens, exposure, decay)
            weights = self._maximise(exposure, terms)
            value, _ = _best(
                exposure, self._kind, Means(*(terms @ weights)), _COARSE if self._overdispersed else (POISSON,)
            )
            if value > best:
                best, self._decay, self._weights = value, decay, weights
        if self._overdispersed:
            means = Means(*(self._terms(tokens, exposure, self._decay) @ self._weights))
            self._factor, self._dispersion = _best_mixture(exposure, self._kind, means)
        return self

    def means(self, tokens: Tokens, exposure: Exposure) -> Means:
        """Return the means of each row."""
        means = Means(*(self._terms(tokens, exposure, self._decay) @ self._weights))
        return means.scaled(self._factor, self._dispersion)

    def _terms(self, tokens: Tokens, exposure: Exposure, decay: float) -> Floats:
        out = np.empty((2, len(exposure.counts), 3 + exposure.counts.shape[1]))
        start, end = np.where(exposure.token[:, None] >= 0, tokens.interval_s[exposure.token, 1:], 0.0).T
        _excitation(
            exposure.offsets,
            exposure.previous_s,
            np.ascontiguousarray(end),
            np.ascontiguousarray(start),
            np.ascontiguousarray(exposure.bounds_s[:, self._kind]),
            exposure.counts,
            decay,
            LOG_AGE_OFFSET_S,
            out,
        )
        return out

    def _maximise(self, exposure: Exposure, terms: Floats) -> Floats:
        """Return the weights >= 0 that maximise the Poisson likelihood.

        The method is expectation-maximisation. Each step divides every count among the terms. Then the step scales each
        term to the counts that the term received.
        """
        scored = exposure.scored[:, self._kind]
        total = terms[:, scored].sum((0, 1)) + _LEAST
        count = exposure.counts[:, self._kind]
        rows = scored & (count > 0)
        x, n = terms[1, rows], count[rows]
        weights = n.sum() / (total * len(total))
        for _ in range(_EM_STEPS):
            weights = weights * ((n / np.maximum(x @ weights, _LEAST)) @ x) / total
        return np.asarray(weights, np.float64)
