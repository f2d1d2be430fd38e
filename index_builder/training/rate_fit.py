"""Rates fitted to what past spans of time brought, so that by age and type the sums of expected and real engagement agree.

log c and the day's waves of a type (``model.rates``) maximise the quasi-likelihood of counts with a log link, whose score over each knot
of age is the difference of the two sums: nothing is assumed of how a video's growth is spread about its mean. A video is one
observation, however often it was asked: how much is known at a knot is told by the spread of its videos' scores, so that a factor
which few videos tell, or a few large ones against all others, follows those of the neighbouring ages, by a random walk in log age.

Training videos come first, because they are many and old enough to tell of every age. What was held back corrects them: forecasts of
what was learned from are a little too good, and times change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.rates import KNOTS, MIN_MEDIAN, N_WAVES, RateInputs, Rates, knot_weights

Floats = NDArray[np.float64]


class _Prior(NamedTuple):
    """Standard deviations: of the mean of log c over all ages, of its walk over a doubling of age, and of a wave's weight."""

    level: float
    walk: float
    wave: float


_FIRST: Final = _Prior(1.0, 0.5, 0.3)
_CORRECTION: Final = _Prior(0.15, 0.1, 0.1)
_STEPS: Final = 25
_TINY: Final = 1e-9
_STRAYED: Final = 0.001
"""Share of the rates on each side that may be cut off, to lie within the stated multiple of the next hour's median."""
_MOST_STRAYED: Final = 10.0


@dataclass(frozen=True, slots=True)
class Spans:
    """N spans of time, asked about at M moments spread over each from what was known at its start, and what they brought.

    ``video`` (N,) int64; ``hours`` (N, M) float64, how many times an hour's engagement the part of a span about a moment should
    bring; ``timed`` (N,) bool, whether a span is short enough to tell of the time of day; ``moments`` N * M of them, those of a span
    one after another;
    ``served`` (N, M, K) float64, what the forecaster's own rates say; ``grown`` (N, K) float64, by how much each type grew over the
    span, NaN where not observed.
    """

    video: NDArray[np.int64]
    hours: Floats
    timed: NDArray[np.bool_]
    moments: RateInputs
    served: Floats
    grown: Floats

    def take(self, rows: NDArray[np.bool_]) -> Spans:
        """The spans of ``rows``."""
        moments = self.moments.take(rows.repeat(self.served.shape[1]))
        return Spans(self.video[rows], self.hours[rows], self.timed[rows], moments, self.served[rows], self.grown[rows])

    def expected(self, rates: Rates) -> Floats:
        """Expected growth of each type over each span, (N, K)."""
        return self.summed(rates.expected(self.moments).reshape(self.served.shape))

    def summed(self, rates: Floats) -> Floats:
        """Growth over each span, (N, K), at ``rates`` an hour, (N, M, K)."""
        out: Floats = (rates * self.hours[..., None]).sum(1)
        return out


def fit(learned: Spans, held: Spans, metric: tuple[int, ...]) -> Rates:
    """Rates by the spans of training videos, corrected by those held back; ``metric`` names the types that it counts."""
    rates = Rates.plain(learned.grown.shape[1], metric)
    both = [spans for spans in (learned, held) if len(spans.video)]
    if not both:
        return rates
    rates = Rates(rates.log_factor, rates.day, _shares(both[0], metric), metric, rates.bounds)
    # Counts spread at least like Poisson's.
    spread = np.ones((2, len(KNOTS), len(rates.share)))
    for spans, prior in zip(both, (_FIRST, _CORRECTION), strict=False):
        rates, spread = _fitted(rates, spans, prior, spread)
    return Rates(rates.log_factor, rates.day, rates.share, metric, _bounds(rates, both))


def _shares(spans: Spans, metric: tuple[int, ...]) -> Floats:
    """How much each type grew for one of the metric that was forecast; those of the metric add up to 1."""
    known = np.isfinite(spans.grown)
    forecast = (spans.moments.slope.reshape(spans.hours.shape) * spans.hours).sum(1)
    share: Floats = (np.where(known, spans.grown, 0.0).sum(0) + 1e-3) / ((known * forecast[:, None]).sum(0) + 1e-3)
    share[list(metric)] /= share[list(metric)].sum()
    return share


def _fitted(start: Rates, spans: Spans, prior: _Prior, least: Floats) -> tuple[Rates, Floats]:
    """Move the factors and waves of ``start`` by what the spans tell.

    Also the variance of a video's score for its mean, (2, len(KNOTS), K): at ``least`` what it was before, for few videos do not show it.
    """
    n, m, n_types = spans.served.shape
    expected = start.unbounded(spans.moments).reshape(n, m, n_types) * spans.hours[..., None]
    timed = spans.moments.waves * spans.timed.repeat(m)[:, None]
    design = np.concatenate([knot_weights(spans.moments.age_s), timed], axis=1).reshape(n, m, -1)
    cold = spans.moments.cold.reshape(n, m)[:, 0]
    log_factor, day, spread = start.log_factor.copy(), start.day.copy(), least.copy()
    for side, chosen in enumerate((~cold, cold)):
        for kind in range(n_types):
            rows = chosen & np.isfinite(spans.grown[:, kind])
            if rows.any():
                moved, spread[side, :, kind] = _moved(
                    expected[rows, :, kind],
                    design[rows],
                    spans.grown[rows, kind],
                    spans.video[rows],
                    prior,
                    least[side, :, kind],
                )
                log_factor[side, :, kind] += moved[: len(KNOTS)]
                if not side:
                    day[:, kind] += moved[len(KNOTS) :]
    # No rate is further above the median's slope than the bounds let it.
    log_factor = np.minimum(log_factor, np.log(_MOST_STRAYED))
    return Rates(log_factor, day, start.share, start.metric, start.bounds), spread


def _moved(
    expected: Floats, design: Floats, grown: Floats, video: NDArray[np.int64], prior: _Prior, least: Floats
) -> tuple[Floats, Floats]:
    """By how much log c moves at each knot, and the weight of each wave, (J,); and the variances of scores, not below ``least``.

    n spans are ``expected`` (n, M) to bring so much at M moments, whose weights of knots and waves are ``design`` (n, M, J).
    """
    knots = len(KNOTS)
    step = np.diff(np.eye(knots), axis=0) / np.sqrt(np.diff(KNOTS) / np.log(2))[:, None]
    held = np.zeros((knots + N_WAVES,) * 2)
    held[:knots, :knots] = step.T @ step / prior.walk**2 + 1 / (knots * prior.level) ** 2
    held[knots:, knots:] = np.eye(N_WAVES) / prior.wave**2
    own = np.unique(video, return_inverse=True)[1]
    out = np.zeros(knots + N_WAVES)
    out[:knots] = np.clip(np.log((grown.sum() + 1) / (expected.sum() + 1)), -3 * prior.level, 3 * prior.level)
    spread = least
    for done in range(_STEPS):
        by_moment = expected * np.exp(design @ out)
        mean = by_moment.sum(1)
        # How much of a span's expectation hangs on each knot and wave.
        part = np.einsum("nm,nmj->nj", by_moment, design) / mean[:, None]
        if done % 5 == 0:
            score = part[:, :knots] * (grown - mean)[:, None]
            by_video = np.stack([np.bincount(own, column) for column in score.T])
            known = part[:, :knots].T @ mean
            spread = np.maximum(((by_video**2).sum(1) + _TINY) / (known + _TINY), least)
        certain = 1 / (part[:, :knots] @ spread)
        slope = part.T @ ((grown - mean) * certain) - held @ out
        curvature = (part * (mean * certain)[:, None]).T @ part + held
        out = out + np.clip(np.linalg.solve(curvature, slope), -1.0, 1.0)
    return out, spread


def _bounds(rates: Rates, parts: list[Spans]) -> tuple[float, float]:
    """What nearly all rates are of the next hour's median once something is observed, at least and at most."""
    found = []
    for spans in parts:
        moments = spans.moments
        some = (moments.median >= MIN_MEDIAN) & ~moments.cold
        found.append(rates.unbounded(moments)[some][:, list(rates.metric)].sum(1) / moments.median[some])
    ratios = np.concatenate(found)
    if not len(ratios):
        return 1 / _MOST_STRAYED, _MOST_STRAYED
    least, most = np.quantile(ratios, (_STRAYED, 1 - _STRAYED))
    return float(np.clip(least, 1 / _MOST_STRAYED, 1.0)), float(np.clip(most, 1.0, _MOST_STRAYED))
