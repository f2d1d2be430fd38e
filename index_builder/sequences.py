"""A data set's rows as the model reads them."""

from __future__ import annotations

import numpy as np

from index_builder.datasets.dataset import DataSet, Rows
from model.engagement.rows import Source
from model.features.tokens import COUNTERS, EVENTS


def _source(mode: int, rows: Rows | None, n_videos: int) -> Source:
    if rows is None:
        none = np.zeros(0, dtype=np.int64)
        return Source(mode, np.zeros(n_videos + 1, dtype=np.int64), none, none, none, none)
    return Source(
        mode, rows.offsets, rows.time_us, rows.type.astype(np.int64), rows.value.astype(np.int64),
        rows.reach.astype(np.int64),
    )  # fmt: skip


def sources(data: DataSet) -> tuple[Source, Source]:
    """The data set's events and counters, either possibly empty."""
    n = len(data.videos)
    return (
        _source(EVENTS, data.events, n),
        _source(COUNTERS, data.counters, n),
    )
