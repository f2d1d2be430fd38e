"""What a bundle says of the data that it learned from: the range that forecasts stay in, and the rates of types."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.samples import Samples
from model.engagement.history import Mode
from model.engagement.rows import Source
from model.engagement.types import metric_types
from model.quantiles.calibration import N_ROWS
from model.quantiles.head import MOST_GROWTH
from model.quantiles.support import Support
from model.rates import Rates

_SHORTEST = 0.2
"""Part of the samples whose next reading came sooner than the shortest horizon that counts as learned."""


def sources_of(seen: Observed) -> NDArray[np.bool_]:
    """Which types were read as events and which as counters, (K, 2) bool."""
    out = np.zeros((len(seen.data.types), 2), bool)
    modes: tuple[tuple[Mode, Source], ...] = (("events", seen.events), ("counters", seen.counters))
    for column, (_, source) in enumerate(modes):
        out[np.unique(source.type), column] = True
    return out


def support_of(seen: Observed, parts: list[Samples], max_horizon_s: float) -> Support:
    """The range of the samples that a model learned from and was judged by."""
    video, age_s, value_now, cold, summary, horizon_s, growth = (
        np.concatenate([getattr(samples, name) for samples in parts])
        for name in ("video", "age_s", "value_now", "cold", "summary", "horizon_s", "growth")
    )
    first = np.where(np.isfinite(growth), horizon_s, np.inf).min(axis=1)
    first = first[np.isfinite(first)]
    shortest = 0.0 if seen.continuous or not len(first) else float(np.quantile(first, _SHORTEST))
    return Support.fit(
        video, age_s, value_now, cold, summary, horizon_s, growth, sources_of(seen), max_horizon_s, shortest
    )


def rates_of(seen: Observed, samples: Samples, median: NDArray[np.float64]) -> Rates:
    """Rates by the first outcome of each held-back sample, from the median growth (N, J) that was forecast for it."""
    horizon = np.where(np.isfinite(samples.growth), samples.horizon_s, np.inf)
    first = np.argmin(horizon, axis=1)
    rows = np.flatnonzero(np.isfinite(horizon.min(axis=1)))
    n_types = len(seen.data.types)
    if not len(rows):
        return Rates(np.ones((N_ROWS, n_types)), np.full(n_types, 1.0))
    video, now = samples.video[rows], samples.now_us[rows]
    target = now + np.round(horizon[rows, first[rows]] * 1e6).astype(np.int64)
    counts, grown = np.zeros((len(rows), n_types)), np.full((len(rows), n_types), np.nan)
    for kind, name in enumerate(seen.data.types):
        one = Observed.of(seen.data, name)
        counts[:, kind] = one.count_at(video, now)
        grown[:, kind] = np.maximum(one.count_at(video, target) - counts[:, kind], 0.0)
    increment = (1 + samples.value_now[rows]) * np.expm1(np.log(2) * np.minimum(median[rows, first[rows]], MOST_GROWTH))
    return Rates.fit(
        video, samples.age_s[rows], samples.cold[rows], increment, samples.value_now[rows], counts, grown,
        metric_types(seen.name, seen.data.types),
    )  # fmt: skip
