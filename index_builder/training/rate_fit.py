"""Fits rates to past spans of time, so that expected and real engagement have the same sum for every age and type.

The fit determines log c and the daily waves of each type (see ``model.rates``). The fit maximises the quasi-likelihood
of counts with a log link. At each knot of age, the score of the quasi-likelihood is the difference of the expected and
the real sum. So the fit assumes nothing about how the growth of videos is distributed around its mean.

All spans of one video together are one observation. The variance of the videos' scores at a knot measures how much is
known at this knot. A factor c may be known from few videos only, or from a few large videos that disagree with all
others. Then the factor follows the factors of neighbouring ages, because the prior is a random walk in log age.

Spans of training videos are fitted first, because there are many of them at every age. Then spans of the holdout
correct the result. The correction is needed because forecasts of training data are a little too good, and because
engagement changes over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.rates import KNOTS, MIN_MEAN, N_WAVES, RateInputs, Rates, knot_weights

Floats = NDArray[np.float64]


class _Prior(NamedTuple):
    """Standard deviations of the prior.

    ``level``: standard deviation of the mean of log c over all ages.
    ``walk``: standard deviation of the random walk of log c, per doubling of age.
    ``wave``: standard deviation of a wave's weight.
    """

    level: float
    walk: float
    wave: float


_FIRST: Final = _Prior(1.0, 0.5, 0.3)
_CORRECTION: Final = _Prior(0.15, 0.1, 0.1)
_STEPS: Final = 25
_TINY: Final = 1e-9
_CUT_OFF: Final = 0.001
"""Fraction of the rates that may be outside the bounds on each side. Bounds are multiples of the next hour's mean growth."""
_MAX_RATIO: Final = 10.0


@dataclass(frozen=True, slots=True)
class Spans:
    """N spans of time with M forecasts each, and the real growth of K types.

    The forecasts were made from what was known at the start of the span.

    ``video`` (N,) int64: video of each span.
    ``hours`` (N, M) float64: expected engagement in each forecast's segment of the span, expressed in hours at the
    forecast's rate.
    ``timed`` (N,) bool: True if the span is short enough to give information about the time of day.
    ``moments``: inputs of the N * M forecasts, span by span.
    ``served`` (N, M, K) float64: the forecaster's own rates.
    ``grown`` (N, K) float64: growth of each type over the span, NaN where not observed.
    """

    video: NDArray[np.int64]
    hours: Floats
    timed: NDArray[np.bool_]
    moments: RateInputs
    served: Floats
    grown: Floats

    def take(self, rows: NDArray[np.bool_]) -> Spans:
        """Return the spans that ``rows`` selects."""
        moments = self.moments.take(rows.repeat(self.served.shape[1]))
        return Spans(self.video[rows], self.hours[rows], self.timed[rows], moments, self.served[rows], self.grown[rows])

    def expected(self, rates: Rates) -> Floats:
        """Return the expected growth (N, K) of each type over each span."""
        return self.summed(rates.expected(self.moments).reshape(self.served.shape))

    def summed(self, rates: Floats) -> Floats:
        """Return the growth (N, K) of each type over each span. ``rates`` (N, M, K) are the rates per hour."""
        out: Floats = (rates * self.hours[..., None]).sum(1)
        return out


def fit(learned: Spans, held: Spans, metric: tuple[int, ...]) -> Rates:
    """Fit rates to the spans of training videos, then correct them with the spans of the holdout.

    ``metric`` contains the indices of the types that the metric counts.
    """
    rates = Rates.plain(learned.grown.shape[1], metric)
    both = [spans for spans in (learned, held) if len(spans.video)]
    if not both:
        return rates
    rates = Rates(rates.log_factor, rates.day, _shares(both[0], metric), metric, rates.bounds)
    # The variance of counts is at least that of Poisson counts.
    spread = np.ones((2, len(KNOTS), len(rates.share)))
    for spans, prior in zip(both, (_FIRST, _CORRECTION), strict=False):
        rates, spread = _fitted(rates, spans, prior, spread)
    return Rates(rates.log_factor, rates.day, rates.share, metric, _bounds(rates, both))


def _shares(spans: Spans, metric: tuple[int, ...]) -> Floats:
    """Return the growth of each type per unit of the metric's forecast growth. The values of the metric's types add up to 1."""
    known = np.isfinite(spans.grown)
    forecast = (spans.moments.slope.reshape(spans.hours.shape) * spans.hours).sum(1)
    share: Floats = (np.where(known, spans.grown, 0.0).sum(0) + 1e-3) / ((known * forecast[:, None]).sum(0) + 1e-3)
    share[list(metric)] /= share[list(metric)].sum()
    return share


def _fitted(start: Rates, spans: Spans, prior: _Prior, minimum: Floats) -> tuple[Rates, Floats]:
    """Move the factors and waves of ``start`` to fit the spans. Return the new rates and variances.

    A variance is the sum of the squared scores of all videos at a knot, divided by the expected growth at this knot.
    The variances have shape (2, len(KNOTS), K). A variance is never smaller than its previous value in ``minimum``,
    because few videos do not show the full variance.
    """
    n, m, n_types = spans.served.shape
    expected = start.unbounded(spans.moments).reshape(n, m, n_types) * spans.hours[..., None]
    timed = spans.moments.waves * spans.timed.repeat(m)[:, None]
    design = np.concatenate([knot_weights(spans.moments.age_s), timed], axis=1).reshape(n, m, -1)
    cold = spans.moments.cold.reshape(n, m)[:, 0]
    log_factor, day, spread = start.log_factor.copy(), start.day.copy(), minimum.copy()
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
                    minimum[side, :, kind],
                )
                log_factor[side, :, kind] += moved[: len(KNOTS)]
                if not side:
                    day[:, kind] += moved[len(KNOTS) :]
    # No factor may exceed the largest rate that the bounds allow.
    log_factor = np.minimum(log_factor, np.log(_MAX_RATIO))
    return Rates(log_factor, day, start.share, start.metric, start.bounds), spread


def _moved(
    expected: Floats, design: Floats, grown: Floats, video: NDArray[np.int64], prior: _Prior, minimum: Floats
) -> tuple[Floats, Floats]:
    """Fit the factors and waves once. Return the changes (J,) of factors and waves, and the variances of scores.

    The changes apply to log c at each knot and to the weight of each wave. The n spans have M forecasts each.
    ``expected`` (n, M) is each forecast's contribution to the expected growth of its span. ``design`` (n, M, J) are the
    forecasts' weights of knots and waves. No variance is smaller than its value in ``minimum``.
    """
    knots = len(KNOTS)
    step = np.diff(np.eye(knots), axis=0) / np.sqrt(np.diff(KNOTS) / np.log(2))[:, None]
    held = np.zeros((knots + N_WAVES,) * 2)
    held[:knots, :knots] = step.T @ step / prior.walk**2 + 1 / (knots * prior.level) ** 2
    held[knots:, knots:] = np.eye(N_WAVES) / prior.wave**2
    own = np.unique(video, return_inverse=True)[1]
    out = np.zeros(knots + N_WAVES)
    out[:knots] = np.clip(np.log((grown.sum() + 1) / (expected.sum() + 1)), -3 * prior.level, 3 * prior.level)
    spread = minimum
    for done in range(_STEPS):
        by_moment = expected * np.exp(design @ out)
        mean = by_moment.sum(1)
        # Gradient of the log of each span's expected growth with respect to each knot and wave.
        part = np.einsum("nm,nmj->nj", by_moment, design) / mean[:, None]
        if done % 5 == 0:
            score = part[:, :knots] * (grown - mean)[:, None]
            by_video = np.stack([np.bincount(own, column) for column in score.T])
            known = part[:, :knots].T @ mean
            spread = np.maximum(((by_video**2).sum(1) + _TINY) / (known + _TINY), minimum)
        certain = 1 / (part[:, :knots] @ spread)
        slope = part.T @ ((grown - mean) * certain) - held @ out
        curvature = (part * (mean * certain)[:, None]).T @ part + held
        out = out + np.clip(np.linalg.solve(curvature, slope), -1.0, 1.0)
    return out, spread


def _bounds(rates: Rates, parts: list[Spans]) -> tuple[float, float]:
    """Return a lower and an upper bound of nearly all rates, as multiples of the next hour's mean growth.

    Only forecasts that are made after a video's first observation are used.
    """
    found = []
    for spans in parts:
        moments = spans.moments
        some = (moments.mean >= MIN_MEAN) & ~moments.cold
        found.append(rates.unbounded(moments)[some][:, list(rates.metric)].sum(1) / moments.mean[some])
    ratios = np.concatenate(found)
    if not len(ratios):
        return 1 / _MAX_RATIO, _MAX_RATIO
    low, high = np.quantile(ratios, (_CUT_OFF, 1 - _CUT_OFF))
    return float(np.clip(low, 1 / _MAX_RATIO, 1.0)), float(np.clip(high, 1.0, _MAX_RATIO))
