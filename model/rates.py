"""How many engagements of each type the next hour brings, from the slope of the metric's forecast.

From an age a the forecast's median grows by m counts to an horizon h of half the age, at least an hour and at most a day. Popularity ages
by log age, so of that the next hour has

    b = m log(1 + 1 h / (a + 1 min)) / log(1 + h / (a + 1 min))

which tells a late hour, most of whose kind bring nothing, better than the median of the hour itself: that is 0 or nearly so. Type k is
expected to grow by

    e_k = c_k(a) d_k (b + b_0) (n_k + W s_k) / (n + W)

where n and n_k are the counts now of the metric and of the type, s_k is the type's usual share of the metric, W a few counts that
speak for it and b_0 next to nothing. log c_k is linear in log age between knots, and other before anything was observed. log d_k is the
mean over the next hour, less that over the horizon h, of waves of the time of day and of the age (two harmonics of 24 hours each; who
sees a video at the hour at which it was published sees it at that hour again): to first order how much livelier the hour is than
what b was taken from. They make the sums of e_k over past videos equal to what came, by age (``index_builder.training.rate_fit``):
a median lies below the mean where growth is skewed.

All types are scaled alike so that the metric's sum lies within ``least`` to ``most`` times the median of the next hour, where that is
half a count or more.
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
LEAST_MEDIAN: Final = 0.5
"""Counts; a rate is held to a multiple of a median from here on."""
_USUAL_COUNTS: Final = 20.0
_LEAST_SLOPE: Final = 1e-3
"""Counts an hour; where a forecast sees no growth at all, some comes at times."""


def slope_horizon_s(age_s: Floats, max_horizon_s: float) -> Floats:
    """The horizon h of ages of any shape, both seconds: half the age within an hour and a day, at most the trained maximum."""
    return np.minimum(np.clip(age_s / 2, HOUR_S, _DAY_S), max_horizon_s)


def in_next_hour(increment: Floats, age_s: Floats, horizon_s: Floats) -> Floats:
    """How much of the counts that come within ``horizon_s`` comes within an hour, even in log(age + 1 minute); of any shape."""
    since = age_s + LOG_AGE_OFFSET_S
    out: Floats = increment * (np.log1p(HOUR_S / since) / np.log1p(horizon_s / since))
    return out


def waves(now_s: Floats, age_s: Floats, length_s: Floats | float, horizon_s: Floats) -> Floats:
    """Waves of the day's time and of the age, means over the next ``length_s`` less those over ``horizon_s``.

    Cosine and sine of a day and of half a day, of ``now_s`` (seconds UTC) and of ``age_s``, of any one shape; returns that shape
    and (N_WAVES,).
    """
    number = np.arange(1, _HARMONICS + 1) / _DAY_S
    since = np.stack([now_s, age_s], axis=-1)[..., None]
    # The mean of a wave over a window is that in its middle, damped.
    near, far = (
        np.sinc(number * window)[..., None, :] * np.exp(2j * np.pi * number * (since + window[..., None] / 2))
        for window in (np.asarray(length_s)[..., None], horizon_s[..., None])
    )
    out: Floats = (near - far).reshape(*now_s.shape, N_WAVES // 2).view(np.float64)
    return out


def knot_weights(age_s: Floats) -> Floats:
    """Weights of the knots at ages of any shape in seconds: that shape and (len(KNOTS),), adding up to 1."""
    at = np.minimum(np.maximum(np.log(age_s + LOG_AGE_OFFSET_S), KNOTS[0]), KNOTS[-1])[..., None] - KNOTS
    out: Floats = np.maximum(np.minimum(1 + at / _BELOW, 1 - at / _ABOVE), 0.0)
    return out


@dataclass(frozen=True, slots=True)
class Moments:
    """What a forecast says of the next hour at N moments.

    ``age_s`` (N,) seconds; ``cold`` (N,) bool, whether nothing was observed; ``slope`` (N,), b of the module; ``median`` (N,), by how
    much the forecast's median grows in the next hour; ``waves`` (N, N_WAVES); ``value_now`` (N,) the metric's count; ``counts`` (N, K)
    of each type. All but ``cold`` float64.
    """

    age_s: Floats
    cold: NDArray[np.bool_]
    slope: Floats
    median: Floats
    waves: Floats
    value_now: Floats
    counts: Floats

    def take(self, rows: NDArray[np.bool_]) -> Moments:
        """The moments of ``rows``."""
        return Moments(**{name: getattr(self, name)[rows] for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Rates:
    """See the module.

    ``log_factor`` (2, len(KNOTS), K) float64, log c of each type by age, the second before anything was observed; ``day`` (N_WAVES, K) the
    weights of waves, not used before that; ``share`` (K,) each type's usual share of the metric; ``metric`` the types
    that it counts; ``bounds`` ``least`` and ``most``.
    """

    log_factor: Floats
    day: Floats
    share: Floats
    metric: tuple[int, ...]
    bounds: tuple[float, float]

    def unbounded(self, moments: Moments) -> Floats:
        """As ``expected``, wherever the median of the next hour lies."""
        share = (moments.counts + _USUAL_COUNTS * self.share) / (moments.value_now[:, None] + _USUAL_COUNTS)
        weights = knot_weights(moments.age_s)
        # einsum without optimisation sums in one fixed order a row: a row's result does not depend on the batch.
        log = np.einsum("nj,jk->nk", weights, self.log_factor[0]) + np.einsum("nw,wk->nk", moments.waves, self.day)
        if moments.cold.any():
            log = np.where(moments.cold[:, None], np.einsum("nj,jk->nk", weights, self.log_factor[1]), log)
        out: Floats = np.exp(log) * (moments.slope[:, None] + _LEAST_SLOPE) * share
        return out

    def expected(self, moments: Moments) -> Floats:
        """Expected engagements of each type in the next hour, (N, K) float64."""
        rates = self.unbounded(moments)
        total = rates[:, list(self.metric)].sum(1)
        least, most = self.bounds
        highest = most * np.maximum(moments.median, LEAST_MEDIAN)
        bounded = np.minimum(np.maximum(total, least * moments.median), highest)
        out: Floats = rates * (bounded / np.maximum(total, 1e-300))[:, None]
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a bundle's weights."""
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
        least, most = weights["rates.bounds"].tolist()
        log_factor, day, share = (
            weights[f"rates.{name}"].astype(np.float64) for name in ("log_factor", "day", "share")
        )
        return Rates(log_factor, day, share, tuple(int(k) for k in weights["rates.metric"]), (least, most))

    @staticmethod
    def plain(n_types: int, metric: tuple[int, ...]) -> Rates:
        """Of a forecast that nothing was compared with yet: no factor, no bound, each type of the metric as usual as another."""
        share = np.ones(n_types)
        share[list(metric)] /= len(metric)
        return Rates(np.zeros((2, len(KNOTS), n_types)), np.zeros((N_WAVES, n_types)), share, metric, (0.0, np.inf))
