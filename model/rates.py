"""Expected engagements of each type in the next hour, from the slope of the metric's forecast.

At age a the forecast's median grows by m counts up to a horizon h, which is half the age, but at least an hour and at most a day.
Popularity ages by log age, so the next hour's part of m is

    b = m log(1 + 1 h / (a + 1 min)) / log(1 + h / (a + 1 min))

For old videos b predicts better than the median of the hour itself: most of their hours bring nothing, so that median is close to 0.
Type k is expected to grow by

    e_k = c_k(a) d_k (b + b_0) (n_k + W s_k) / (n + W)

where n and n_k are the current counts of the metric and of the type, s_k is the type's usual share of the metric, W is the weight of that
prior in counts, and b_0 is close to 0. log c_k is linear in log age between knots, with separate values for cold starts. log d_k is
a sum of waves of the time of day and of the age (two harmonics of 24 hours each; people who saw a video at its hour of publication tend
to see it at that hour again). Each wave counts with its mean over the next hour minus its mean over the horizon h. To first order that is
how much busier the hour is than the average of the horizon. ``index_builder.training.rate_fit`` fits c and d so that, by age, the sums
of e_k over past videos equal the observed sums. This is needed because the median of skewed growth lies below its mean.

All types are scaled by one factor so that the metric's sum lies between ``bounds[0]`` and ``bounds[1]`` times the median of the next
hour. The upper bound takes that median as half a count if it is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.features.tokens import LOG_AGE_OFFSET_S

Floats = NDArray[np.float64]

HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * HOUR_S
KNOTS: Final = np.log(np.array([0.1, 0.5, 1, 2, 4, 8, 14, 24, 40, 72, 120, 240, 480]) * HOUR_S + LOG_AGE_OFFSET_S)
"""Knots of the factors, log(age + 1 minute) with age in seconds: from 6 minutes to 20 days."""
_HARMONICS: Final = 2
_BELOW: Final = np.diff(KNOTS, prepend=KNOTS[0] - 1)
_ABOVE: Final = np.diff(KNOTS, append=KNOTS[-1] + 1)
N_WAVES: Final = 4 * _HARMONICS
MIN_MEDIAN: Final = 0.5
"""Counts: a smaller median counts as this one in the upper bound of a rate."""
_USUAL_COUNTS: Final = 20.0
"""Weight W of the usual shares, in counts."""
_MIN_SLOPE: Final = 1e-3
"""Counts an hour (b_0): some growth comes even if the forecast expects none."""


def slope_horizon_s(age_s: Floats, max_horizon_s: float) -> Floats:
    """The horizon h for ages of any shape, in seconds: half the age, between an hour and a day, and at most the trained maximum."""
    return np.minimum(np.clip(age_s / 2, HOUR_S, _DAY_S), max_horizon_s)


def in_next_hour(increment: Floats, age_s: Floats, horizon_s: Floats) -> Floats:
    """The next hour's part of an increment over ``horizon_s``, if growth is even in log(age + 1 minute). Any shape."""
    since = age_s + LOG_AGE_OFFSET_S
    out: Floats = increment * (np.log1p(HOUR_S / since) / np.log1p(horizon_s / since))
    return out


def waves(now_s: Floats, age_s: Floats, length_s: Floats | float, horizon_s: Floats) -> Floats:
    """Waves of the time of day and of the age: their means over the next ``length_s`` minus their means over ``horizon_s``.

    The waves are cosine and sine with periods of a day and of half a day, of ``now_s`` (seconds UTC) and of ``age_s``. The arguments have
    one shape of any kind; the result has one more axis of N_WAVES.
    """
    number = np.arange(1, _HARMONICS + 1) / _DAY_S
    since = np.stack([now_s, age_s], axis=-1)[..., None]
    # The mean of a wave over a window is its value in the middle, damped.
    near, far = (
        np.sinc(number * window)[..., None, :] * np.exp(2j * np.pi * number * (since + window[..., None] / 2))
        for window in (np.asarray(length_s)[..., None], horizon_s[..., None])
    )
    out: Floats = (near - far).reshape(*now_s.shape, N_WAVES // 2).view(np.float64)
    return out


def knot_weights(age_s: Floats) -> Floats:
    """Weights of the knots at ages of any shape, in seconds: one more axis of len(KNOTS), summing to 1."""
    at = np.minimum(np.maximum(np.log(age_s + LOG_AGE_OFFSET_S), KNOTS[0]), KNOTS[-1])[..., None] - KNOTS
    out: Floats = np.maximum(np.minimum(1 + at / _BELOW, 1 - at / _ABOVE), 0.0)
    return out


@dataclass(frozen=True, slots=True)
class RateInputs:
    """The inputs of N rates, most of them from forecasts.

    ``age_s`` (N,) seconds; ``cold`` (N,) bool, cold starts; ``slope`` (N,), b of the module; ``median`` (N,), the growth of the forecast's
    median in the next hour, in counts; ``waves`` (N, N_WAVES); ``value_now`` (N,) the metric's count; ``counts`` (N, K) of each type.
    All are float64 except ``cold``.
    """

    age_s: Floats
    cold: NDArray[np.bool_]
    slope: Floats
    median: Floats
    waves: Floats
    value_now: Floats
    counts: Floats

    def take(self, rows: NDArray[np.bool_]) -> RateInputs:
        """The inputs of ``rows``."""
        return RateInputs(**{name: getattr(self, name)[rows] for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Rates:
    """The fitted model of rates; see the module.

    ``log_factor`` (2, len(KNOTS), K) float64, log c of each type by age, the second one for cold starts; ``day`` (N_WAVES, K), the weights
    of the waves, which cold starts do not use; ``share`` (K,), each type's usual share of the metric; ``metric``, the types that the
    metric counts; ``bounds``, the smallest and the largest ratio to the median of the next hour.
    """

    log_factor: Floats
    day: Floats
    share: Floats
    metric: tuple[int, ...]
    bounds: tuple[float, float]

    def unbounded(self, inputs: RateInputs) -> Floats:
        """As ``expected``, without the bounds."""
        share = (inputs.counts + _USUAL_COUNTS * self.share) / (inputs.value_now[:, None] + _USUAL_COUNTS)
        weights = knot_weights(inputs.age_s)
        # einsum without optimisation sums each row in one fixed order, so a row's result does not depend on the batch.
        log = np.einsum("nj,jk->nk", weights, self.log_factor[0]) + np.einsum("nw,wk->nk", inputs.waves, self.day)
        if inputs.cold.any():
            log = np.where(inputs.cold[:, None], np.einsum("nj,jk->nk", weights, self.log_factor[1]), log)
        out: Floats = np.exp(log) * (inputs.slope[:, None] + _MIN_SLOPE) * share
        return out

    def expected(self, inputs: RateInputs) -> Floats:
        """Expected engagements of each type in the next hour, (N, K) float64."""
        rates = self.unbounded(inputs)
        total = rates[:, list(self.metric)].sum(1)
        low, high = self.bounds
        highest = high * np.maximum(inputs.median, MIN_MEDIAN)
        bounded = np.minimum(np.maximum(total, low * inputs.median), highest)
        out: Floats = rates * (bounded / np.maximum(total, 1e-300))[:, None]
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays to store in a bundle's weights."""
        return {
            "rates.log_factor": self.log_factor,
            "rates.day": self.day,
            "rates.share": self.share,
            "rates.metric": np.array(self.metric, np.int64),
            "rates.bounds": np.array(self.bounds),
        }

    @staticmethod
    def of(weights: Mapping[str, NDArray[np.float32]]) -> Rates:
        """Inverse of ``arrays``."""
        low, high = weights["rates.bounds"].tolist()
        log_factor, day, share = (
            weights[f"rates.{name}"].astype(np.float64) for name in ("log_factor", "day", "share")
        )
        return Rates(log_factor, day, share, tuple(int(k) for k in weights["rates.metric"]), (low, high))

    @staticmethod
    def plain(n_types: int, metric: tuple[int, ...]) -> Rates:
        """Rates before any fit: factors of 1, no bounds, and equal shares of the metric's types."""
        share = np.ones(n_types)
        share[list(metric)] /= len(metric)
        return Rates(np.zeros((2, len(KNOTS), n_types)), np.zeros((N_WAVES, n_types)), share, metric, (0.0, np.inf))
