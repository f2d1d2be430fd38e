"""Range of the data that a bundle was trained on. Forecasts are limited to this range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.samples import Samples
from model.engagement.history import Mode
from model.engagement.rows import VideoRows
from model.quantiles.support import Support

_SHORTEST = 0.2
"""Quantile of the time to the next reading. The time at this quantile is the range's shortest horizon."""


def sources_of(observed: Observed) -> NDArray[np.bool_]:
    """Return flags (K, 2) bool: which types were read as events (first column) and which as counters (second column)."""
    out = np.zeros((len(observed.data.types), 2), bool)
    modes: tuple[tuple[Mode, VideoRows], ...] = (("events", observed.events), ("counters", observed.counters))
    for column, (_, source) in enumerate(modes):
        out[np.unique(source.type), column] = True
    return out


def support_of(observed: Observed, parts: list[Samples], max_horizon_s: float) -> Support:
    """Return the range of the samples that a model learned from and was evaluated on."""
    video, age_s, value_now, cold, summary, horizon_s, growth = (
        np.concatenate([getattr(samples, name) for samples in parts])
        for name in ("video", "age_s", "value_now", "cold", "summary", "horizon_s", "growth")
    )
    first = np.where(np.isfinite(growth), horizon_s, np.inf).min(axis=1)
    first = first[np.isfinite(first)]
    shortest = 0.0 if observed.continuous or not len(first) else float(np.quantile(first, _SHORTEST))
    return Support.fit(
        video, age_s, value_now, cold, summary, horizon_s, growth, sources_of(observed), max_horizon_s, shortest
    )
