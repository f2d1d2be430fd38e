"""Simulates counters whose future growth depends on the shape of the curve so far, and not on its level.

Each video belongs to one of K classes. A class has

    rhythm   factors of the rate by hour, for the first 24 hours. The factors of every class give the same total after
             24 hours and the same count in the last hour, so neither level nor slope tells the class.
    growth   the growth over the 24 hours that follow, in log2 units. After that, the growth falls by half each day.

From the time of a drift on, the growths belong to other rhythms. A model that was trained before the drift has learned
the wrong growths. But later videos show the new ones.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.simulation.videos import Content
from model.engagement.bins import HOUR_US

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHAPED_H: Final = 24
"""Number of hours with a rhythm."""
WATCHED_H: Final = 120
"""Number of hours for which a video is read."""
RATIOS: Final = (1.0, 0.08, 0.01, 0.02)
"""Mean number of views, likes, comments and shares per view."""
_RHYTHM: Final = 0.3
"""Standard deviation of the logarithm of a rhythm's factors."""
_OWN_RHYTHM: Final = 0.4
"""Standard deviation of the logarithm of a video's own factors, which are noise on top of its class's rhythm."""
_GROWTH: Final = (0.1, 1.6)
"""Smallest and largest growth of a class over 24 hours, in log2 units."""
_NOISE: Final = 0.12
"""Standard deviation of a video's own deviation from the growth of its class."""
_APPEAL: Final = 0.6
_MEDIAN_VIEWS: Final = 3000.0
"""Median count after 24 hours."""


def read_hourly(
    rng: np.random.Generator, content: Content, shapes: int, drift_us: int | None
) -> tuple[Ints, Ints, Ints, Ints]:
    """Draw the class of every video, and hourly readings of its counters.

    Args:
        rng: source of the random numbers.
        content: V videos. Their appeal sets the level only.
        shapes: number K of classes.
        drift_us: time of publication from which the drift applies, in microseconds UTC. None means no drift.

    Returns:
        The class of each video (V,), and for n readings sorted by time: the video (n,), the time in microseconds (n,)
        and the cumulative counts (n, 4) of views, likes, comments and shares. All arrays are int64.
    """
    n = len(content.published_us)
    rhythm, growth, drifted = _classes(rng, shapes)
    kind = rng.integers(0, shapes, n)
    late = np.zeros(n, np.bool_) if drift_us is None else content.published_us >= drift_us
    own = np.where(late, drifted[kind], growth[kind]) + rng.normal(0, _NOISE, n)
    level = _MEDIAN_VIEWS * np.exp(_APPEAL * content.appeal)
    first = rhythm[kind] * np.exp(rng.normal(0, _OWN_RHYTHM, (n, SHAPED_H)))
    first *= 1 / first.sum(1, keepdims=True)
    share = np.concatenate([first, _after(np.maximum(own, 0.01))], axis=1)
    added = rng.poisson(level[:, None, None] * share[..., None] * np.array(RATIOS))
    totals = np.cumsum(added, axis=1)
    time_us = content.published_us[:, None] + HOUR_US * np.arange(1, WATCHED_H + 1)
    video, hour = np.nonzero(time_us < content.ends_us[:, None])
    order = np.lexsort((video, time_us[video, hour]))
    video, hour = video[order], hour[order]
    return kind, video, time_us[video, hour], totals[video, hour]


def _classes(rng: np.random.Generator, shapes: int) -> tuple[Floats, Floats, Floats]:
    """Return the rhythms (K, SHAPED_H), the growths (K,) and the growths after the drift (K,)."""
    noise = rng.normal(0, _RHYTHM, (shapes, SHAPED_H))
    factor = np.exp(noise) * (1 + np.arange(SHAPED_H)) ** -0.5
    factor[:, -1] = 0.0
    rhythm = factor / factor.sum(1, keepdims=True) * (1 - 1 / SHAPED_H)
    rhythm[:, -1] = 1 / SHAPED_H
    growth = rng.permutation(np.linspace(*_GROWTH, shapes))
    # The drift reverses the order: the rhythm that grew least now grows most.
    return rhythm, growth, _GROWTH[0] + _GROWTH[1] - growth


def _after(growth: Floats) -> Floats:
    """Return the counts of the hours after SHAPED_H as fractions of the count at SHAPED_H, (V, WATCHED_H - SHAPED_H)."""
    days = np.arange(1, (WATCHED_H - SHAPED_H) // 24 + 1)
    grown = np.cumsum(growth[:, None] * 0.5 ** (days - 1), axis=1)
    level = np.concatenate([np.ones((len(growth), 1)), np.exp2(grown)], axis=1)
    return np.asarray(np.repeat(np.diff(level, axis=1) / 24, 24, axis=1))
