"""What a bundle says of the data that it learned from: the range that forecasts stay in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.samples import Samples
from model.engagement.history import Mode
from model.engagement.rows import Source
from model.quantiles.support import Support

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
