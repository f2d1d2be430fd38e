"""Rates fitted to what past spans of time brought, so that by age and type the sums of expected and real engagement agree.

log c of a type (``model.rates``) maximises the quasi-likelihood of counts with a log link, whose score over each knot of age is the
difference of the two sums: nothing is assumed of how a video's growth is spread about its mean. A video is one observation, however
often it was asked: how much is known at a knot is told by the spread of its videos' scores, so that a factor which few videos tell,
or a few large ones against all others, follows those of the neighbouring ages, by a random walk in log age.

Training videos come first, because they are many and old enough to tell of every age. What was held back corrects them: forecasts of
what was learned from are a little too good, and times change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.rates import KNOTS, Rates, knot_weights

Floats = NDArray[np.float64]

_WALK: Final = 0.5
"""Standard deviation of log c over a doubling of age, a random walk's."""
_LEVEL: Final = 1.0
"""Standard deviation of the mean of log c about that of the prior."""
_CORRECTED_WALK: Final = 0.1
_CORRECTED_LEVEL: Final = 0.15
"""The same of what held-back spans correct."""
_STEPS: Final = 40
_FEW: Final = 1e-9
_STRAYED: Final = 0.001
"""Share of the rates on each side that may be cut off, to lie within the stated multiple of the next hour's median."""
_MOST_STRAYED: Final = 10.0
_LEAST_MEDIAN: Final = 0.5


@dataclass(frozen=True, slots=True)
class Spans:
    """N spans of time, asked about at M moments spread over each, from what was known at its start, and what they brought.

    ``video`` (N,) int64; ``hours`` (N,) float64, how many times an hour's engagement the span is expected to bring; ``age_s`` (N, M) float64 at the moments; ``cold`` (N,) bool, nothing known yet;
    ``slope`` and ``median`` (N, M), what the forecast expects an hour (see ``model.rates``); ``value_now`` (N,) and ``counts`` (N, K) of
    the metric and each type at the start; ``served`` (N, M, K), what the forecaster's own rates say; ``grown`` (N, K), by how much each
    type grew over the span, NaN where not observed.
    """

    video: NDArray[np.int64]
    hours: Floats
    age_s: Floats
    cold: NDArray[np.bool_]
    slope: Floats
    median: Floats
    value_now: Floats
    counts: Floats
    served: Floats
    grown: Floats

    def take(self, rows: NDArray[np.bool_]) -> Spans:
        """The spans of ``rows``."""
        return Spans(**{name: getattr(self, name)[rows] for name in self.__slots__})

    def each(self) -> tuple[Floats, NDArray[np.bool_], Floats, Floats, Floats, Floats]:
        """What ``Rates.expected`` reads of every moment, (N * M,) each; counts (N * M, K)."""
        m = self.age_s.shape[1]
        return (
            self.age_s.ravel(), self.cold.repeat(m), self.slope.ravel(), self.median.ravel(), self.value_now.repeat(m),
            self.counts.repeat(m, axis=0),
        )  # fmt: skip

    def expected(self, rates: Rates) -> Floats:
        """Expected growth of each type over each span, (N, K)."""
        by_moment = rates.expected(*self.each()).reshape(*self.age_s.shape, -1)
        out: Floats = by_moment.mean(1) * self.hours[:, None]
        return out


def fit(learned: Spans, held: Spans, metric: tuple[int, ...]) -> Rates:
    """Rates by the spans of training videos, corrected by those held back; ``metric`` names the types that it counts."""
    n_types = learned.grown.shape[1]
    plain = Rates.plain_of(n_types, metric)
    both = [spans for spans in (learned, held) if len(spans.video)]
    if not both:
        return plain
    share = _shares(both[0], metric)
    first = _fitted(Rates(plain.log_factor, share, metric, plain.bounds), both[0], _LEVEL, _WALK)
    corrected = first if len(both) == 1 else _fitted(first, held, _CORRECTED_LEVEL, _CORRECTED_WALK)
    return Rates(corrected.log_factor, share, metric, _bounds(corrected, both))


def _shares(spans: Spans, metric: tuple[int, ...]) -> Floats:
    """How much each type grew for one of the metric that was forecast; those of the metric add up to 1."""
    known = np.isfinite(spans.grown)
    forecast = np.where(known, (spans.slope.mean(1) * spans.hours)[:, None], 0.0).sum(0)
    share: Floats = (np.where(known, spans.grown, 0.0).sum(0) + 1e-3) / (forecast + 1e-3)
    share[list(metric)] /= share[list(metric)].sum()
    return share


def _fitted(start: Rates, spans: Spans, level: float, walk: float) -> Rates:
    """Move the factors of ``start`` by what the spans tell."""
    age_s, cold, slope, _, value_now, counts = spans.each()
    shape = spans.age_s.shape
    expected = start.unbounded(age_s, cold, slope, value_now, counts).reshape(*shape, -1)
    expected = expected * (spans.hours / shape[1])[:, None, None]
    weights = knot_weights(spans.age_s)
    moved = start.log_factor.copy()
    for side, chosen in enumerate((~spans.cold, spans.cold)):
        for kind in range(spans.grown.shape[1]):
            rows = chosen & np.isfinite(spans.grown[:, kind])
            if rows.any():
                moved[side, :, kind] += _log_factor(
                    expected[rows, :, kind], weights[rows], spans.grown[rows, kind], spans.video[rows], level, walk
                )
    # No rate is further above the median's slope than the bounds let it.
    moved = np.minimum(moved, np.log(_MOST_STRAYED))
    return Rates(moved, start.share, start.metric, start.bounds)


def _log_factor(
    expected: Floats, weights: Floats, grown: Floats, video: NDArray[np.int64], level: float, walk: float
) -> Floats:
    """Log of the factor at each knot, (J,), on what n spans are ``expected`` (n, M) to bring at M moments of ``weights`` (n, M, J)."""
    step = np.diff(np.eye(len(KNOTS)), axis=0) / np.sqrt(np.diff(KNOTS) / np.log(2))[:, None]
    smooth = step.T @ step / walk**2 + np.full((len(KNOTS),) * 2, 1 / (len(KNOTS) * level) ** 2)
    own = np.unique(video, return_inverse=True)[1]
    out = np.full(len(KNOTS), np.clip(np.log((grown.sum() + 1) / (expected.sum() + 1)), -3 * level, 3 * level))
    spread = np.ones(len(KNOTS))
    for done in range(_STEPS):
        by_moment = expected * np.exp(weights @ out)
        mean = by_moment.sum(1)
        # How much of a span's expectation hangs on each knot.
        part = np.einsum("nm,nmj->nj", by_moment, weights) / mean[:, None]
        score = part * (grown - mean)[:, None]
        if done % 5 == 0:
            by_video = np.zeros((own.max() + 1, len(KNOTS)))
            np.add.at(by_video, own, score)
            known = (part * mean[:, None]).sum(0)
            # Counts spread at least like Poisson's.
            spread = np.maximum(((by_video**2).sum(0) + _FEW) / (known + _FEW), 1.0)
        certain = 1 / (part @ spread)
        slope = (score * certain[:, None]).sum(0) - smooth @ out
        curvature = (part * (mean * certain)[:, None]).T @ part + smooth
        moved = np.clip(np.linalg.solve(curvature, slope), -1.0, 1.0)
        out = out + moved
    return out


def _bounds(rates: Rates, parts: list[Spans]) -> tuple[float, float]:
    """What nearly all rates are of the next hour's median once something is observed, at least and at most."""
    found = []
    for spans in parts:
        age_s, cold, slope, median, value_now, counts = spans.each()
        total = rates.unbounded(age_s, cold, slope, value_now, counts)[:, list(rates.metric)].sum(1)
        some = (median >= _LEAST_MEDIAN) & ~cold
        found.append(total[some] / median[some])
    ratios = np.concatenate(found)
    if not len(ratios):
        return 1 / _MOST_STRAYED, _MOST_STRAYED
    least, most = np.quantile(ratios, (_STRAYED, 1 - _STRAYED))
    return float(np.clip(least, 1 / _MOST_STRAYED, 1.0)), float(np.clip(most, 1.0, _MOST_STRAYED))
