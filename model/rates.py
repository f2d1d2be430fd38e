"""Expected engagements of each type in the next hour, computed from the slope of the forecast.

The mean of the forecast grows by m counts within a horizon h. The horizon h is half of the video's age a, but at
least one hour and at most one day. Growth is assumed to be even in log age, so the amount b of m belongs to the next
hour:

    b = m log(1 + 1 h / (a + 1 min)) / log(1 + h / (a + 1 min))

For old videos, b is a better prediction than the forecast for the next hour, which is close to 0.

The expected number of engagements of type k is

    e_k = c_k(a) d_k (b + b_0) (n_k + W s_k) / (n + W)

    n, n_k   the current counts of the metric and of type k
    s_k      the usual share of type k in the metric
    W        the weight of the usual share, in counts
    b_0      a small constant, so that no rate is 0
    c_k      a factor that depends on the age. log c_k is linear in log age between knots.
             Cold starts have separate values.
    d_k      a factor that depends on the time. log d_k is a weighted sum of waves.

There are waves of the time of day and waves of the age. Both kinds have periods of 24 and 12 hours. The waves of the
age are needed because people who saw a video at its hour of publication tend to see the video again at that hour on
later days. The value of a wave is its mean over the next hour minus its mean over the horizon h. To first order, this
value says how much busier the next hour is than the average hour of the horizon.

``index_builder.training.rate_fit`` fits c and d. The fit makes the sum of e_k over past videos equal to the observed
sum, for each range of ages. This scaling is needed because the forecast's mean is that of log growth, which lies
below the log of the mean count.

Finally, all types are scaled by one common factor, so that the sum over the metric's types lies between ``bounds[0]``
and ``bounds[1]`` times the mean growth of the next hour. For the upper bound, a mean below half a count is
replaced by half a count.
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
"""Knots of the age factors: log(age + 1 minute) with the age in seconds. The ages range from 6 minutes to 20 days."""
_HARMONICS: Final = 2
_BELOW: Final = np.diff(KNOTS, prepend=KNOTS[0] - 1)
_ABOVE: Final = np.diff(KNOTS, append=KNOTS[-1] + 1)
N_WAVES: Final = 4 * _HARMONICS
MIN_MEAN: Final = 0.5
"""Smallest mean, in counts, that the upper bound of a rate uses. A smaller mean is replaced by this value."""
_USUAL_COUNTS: Final = 20.0
"""Weight W of the usual shares, in counts."""
_MIN_SLOPE: Final = 1e-3
"""The constant b_0, in counts per hour. This constant gives every video some expected growth, even if the forecast expects none."""


def slope_horizon_s(age_s: Floats, max_horizon_s: float) -> Floats:
    """Return the horizon h in seconds for each age.

    The horizon is half of the age, but at least an hour, at most a day, and at most ``max_horizon_s``. The ages may
    have any shape.
    """
    return np.minimum(np.clip(age_s / 2, HOUR_S, _DAY_S), max_horizon_s)


def in_next_hour(increment: Floats, age_s: Floats, horizon_s: Floats) -> Floats:
    """Return how much of ``increment`` belongs to the next hour.

    The increment covers ``horizon_s``. Growth is assumed to be even in log(age + 1 minute). The arguments may have
    any shape.
    """
    since = age_s + LOG_AGE_OFFSET_S
    out: Floats = increment * (np.log1p(HOUR_S / since) / np.log1p(horizon_s / since))
    return out


def waves(now_s: Floats, age_s: Floats, length_s: Floats | float, horizon_s: Floats) -> Floats:
    """Return the waves of the time of day and of the age.

    The value of a wave is its mean over the next ``length_s`` minus its mean over ``horizon_s``. The waves are the
    cosine and the sine of ``now_s`` (seconds UTC) and of ``age_s``, with periods of a day and of half a day. The
    arguments have one common shape, which may be any shape. The result has an additional last axis of length N_WAVES.
    """
    number = np.arange(1, _HARMONICS + 1) / _DAY_S
    since = np.stack([now_s, age_s], axis=-1)[..., None]
    # The mean of a wave over a window is its value in the middle of the window, times a damping factor (sinc).
    near, far = (
        np.sinc(number * window)[..., None, :] * np.exp(2j * np.pi * number * (since + window[..., None] / 2))
        for window in (np.asarray(length_s)[..., None], horizon_s[..., None])
    )
    out: Floats = (near - far).reshape(*now_s.shape, N_WAVES // 2).view(np.float64)
    return out


def knot_weights(age_s: Floats) -> Floats:
    """Return the weights of the knots for each age.

    ``age_s`` holds seconds and may have any shape. The result has an additional last axis of length len(KNOTS). The
    weights sum to 1 along this axis.
    """
    at = np.minimum(np.maximum(np.log(age_s + LOG_AGE_OFFSET_S), KNOTS[0]), KNOTS[-1])[..., None] - KNOTS
    out: Floats = np.maximum(np.minimum(1 + at / _BELOW, 1 - at / _ABOVE), 0.0)
    return out


@dataclass(frozen=True, slots=True)
class RateInputs:
    """The inputs for N rates. Most inputs come from forecasts. All arrays are float64 except ``cold``.

    Attributes:
        age_s: (N,) ages in seconds.
        cold: (N,) bool, whether each video is a cold start.
        slope: (N,) the slope b, see the module.
        mean: (N,) growth of the forecast's mean in the next hour, in counts.
        waves: (N, N_WAVES) the waves, see ``waves``.
        value_now: (N,) current counts of the metric.
        counts: (N, K) current counts of each of the K types.
    """

    age_s: Floats
    cold: NDArray[np.bool_]
    slope: Floats
    mean: Floats
    waves: Floats
    value_now: Floats
    counts: Floats

    def take(self, rows: NDArray[np.bool_]) -> RateInputs:
        """Return the inputs of the selected ``rows``."""
        return RateInputs(**{name: getattr(self, name)[rows] for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Rates:
    """The fitted model of the rates; see the module.

    Attributes:
        log_factor: (2, len(KNOTS), K) float64, log c of each type at each knot. Index 1 of the first axis is for cold
            starts.
        day: (N_WAVES, K) weights of the waves. Cold starts do not use them.
        share: (K,) usual share of each type in the metric.
        metric: indices of the types that the metric counts.
        bounds: smallest and largest allowed ratio of the metric's rate to the mean growth of the next hour.
    """

    log_factor: Floats
    day: Floats
    share: Floats
    metric: tuple[int, ...]
    bounds: tuple[float, float]

    def unbounded(self, inputs: RateInputs) -> Floats:
        """Return the same rates as ``expected``, but without the bounds."""
        share = (inputs.counts + _USUAL_COUNTS * self.share) / (inputs.value_now[:, None] + _USUAL_COUNTS)
        weights = knot_weights(inputs.age_s)
        # Without optimisation, einsum sums each row in one fixed order, so a row's result does not depend on the batch.
        log = np.einsum("nj,jk->nk", weights, self.log_factor[0]) + np.einsum("nw,wk->nk", inputs.waves, self.day)
        if inputs.cold.any():
            log = np.where(inputs.cold[:, None], np.einsum("nj,jk->nk", weights, self.log_factor[1]), log)
        out: Floats = np.exp(log) * (inputs.slope[:, None] + _MIN_SLOPE) * share
        return out

    def expected(self, inputs: RateInputs) -> Floats:
        """Return the expected engagements of each type in the next hour, (N, K) float64."""
        rates = self.unbounded(inputs)
        total = rates[:, list(self.metric)].sum(1)
        low, high = self.bounds
        highest = high * np.maximum(inputs.mean, MIN_MEAN)
        bounded = np.minimum(np.maximum(total, low * inputs.mean), highest)
        out: Floats = rates * (bounded / np.maximum(total, 1e-300))[:, None]
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are stored in a bundle's weights."""
        return {
            "rates.log_factor": self.log_factor,
            "rates.day": self.day,
            "rates.share": self.share,
            "rates.metric": np.array(self.metric, np.int64),
            "rates.bounds": np.array(self.bounds),
        }

    @staticmethod
    def of(weights: Mapping[str, NDArray[np.float32]]) -> Rates:
        """Rebuild the rates from the arrays that ``arrays`` returned."""
        low, high = weights["rates.bounds"].tolist()
        log_factor, day, share = (
            weights[f"rates.{name}"].astype(np.float64) for name in ("log_factor", "day", "share")
        )
        return Rates(log_factor, day, share, tuple(int(k) for k in weights["rates.metric"]), (low, high))

    @staticmethod
    def plain(n_types: int, metric: tuple[int, ...]) -> Rates:
        """Return the rates before any fit: all factors are 1, there are no bounds, and the metric's types have equal shares."""
        share = np.ones(n_types)
        share[list(metric)] /= len(metric)
        return Rates(np.zeros((2, len(KNOTS), n_types)), np.zeros((N_WAVES, n_types)), share, metric, (0.0, np.inf))
