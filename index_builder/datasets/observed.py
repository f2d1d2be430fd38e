"""The rows of a data set, prepared for one metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet, Rows
from model.engagement.cells import COUNTER_MODE, EVENT_MODE
from model.engagement.rows import VideoRows, metric_rows, rows_until
from model.engagement.types import metric_types


@dataclass(frozen=True, slots=True)
class Observed:
    """The rows of a data set, prepared for the metric ``name``.

    ``metric``: the rows that the metric is read from, either events or counters.
    ``totals``: the metric's cumulative count after each of these rows.
    ``continuous``: True if these rows are events.
    """

    data: DataSet
    name: str
    events: VideoRows
    counters: VideoRows
    metric: VideoRows
    totals: NDArray[np.int64]
    continuous: bool

    @staticmethod
    def of(data: DataSet, metric: str) -> Observed:
        """Prepare ``data``. The metric is read from counters if the data set has counters of the metric, otherwise from events."""
        events, counters = sources(data)
        kinds = metric_types(metric, data.types)
        return Observed(data, metric, events, counters, *metric_rows(events, counters, kinds, len(data.types)))

    def count_at(self, video: NDArray[np.int64], time_us: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metric's counts (n,) float64 for n pairs of a video and a time, from rows up to this time."""
        end = rows_until(self.metric, video, time_us)
        has = end > self.metric.offsets[video]
        return (
            np.where(has, self.totals[np.maximum(end - 1, 0)], 0).astype(np.float64)
            if len(self.totals)
            else np.zeros(len(video))
        )


def snapshot_rows(source: VideoRows) -> NDArray[np.int64]:
    """Return the indices of the rows that complete a snapshot: the last row of each (video, time)."""
    n = len(source.time_us)
    last = np.ones(n, dtype=bool)
    if n:
        last[:-1] = source.time_us[1:] != source.time_us[:-1]
        last[source.offsets[1:-1][source.offsets[1:-1] > 0] - 1] = True
    return np.flatnonzero(last)


def _source(mode: int, rows: Rows | None, n_videos: int) -> VideoRows:
    if rows is None:
        none = np.zeros(0, dtype=np.int64)
        return VideoRows(mode, np.zeros(n_videos + 1, dtype=np.int64), none, none, none, none)
    return VideoRows(
        mode,
        rows.offsets,
        rows.time_us,
        rows.type.astype(np.int64),
        rows.value.astype(np.int64),
        rows.reach.astype(np.int64),
    )


def sources(data: DataSet) -> tuple[VideoRows, VideoRows]:
    """Return the data set's events and counters. Either may be empty."""
    n = len(data.videos)
    return (
        _source(EVENT_MODE, data.events, n),
        _source(COUNTER_MODE, data.counters, n),
    )
