"""Collects the usable rows of one file, batch by batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import Rows
from index_builder.datasets.parquet_columns import Flags

_COLUMNS = ("video", "time_us", "type", "value", "reach")


class RowBuffer:
    """Arrays with space for ``capacity`` rows, filled from the front. The first ``n`` rows are in use."""

    def __init__(self, capacity: int) -> None:
        self.video = np.empty(capacity, np.int32)
        self.time_us = np.empty(capacity, np.int64)
        self.type = np.empty(capacity, np.int16)
        self.value = np.empty(capacity, np.int64)
        self.reach = np.empty(capacity, np.int64)
        self.n = 0

    def add(self, keep: Flags, **arrays: NDArray[np.int64]) -> None:
        """Append the rows that ``keep`` flags. ``arrays`` contains one array per column."""
        end = self.n + int(keep.sum())
        for name, array in arrays.items():
            getattr(self, name)[self.n : end] = array[keep]
        self.n = end

    def pairs(self, n_types: int) -> NDArray[np.int64]:
        """Return the video and type of each row, encoded as one number (n,) int64."""
        return self.video[: self.n].astype(np.int64) * n_types + self.type[: self.n]

    def keep(self, rows: Flags) -> None:
        """Keep only the rows that ``rows`` (n,) bool flags."""
        for name in _COLUMNS:
            setattr(self, name, getattr(self, name)[: self.n][rows])
        self.n = int(rows.sum())

    def rows(self, n_videos: int, type_map: NDArray[np.int16]) -> Rows:
        """Return the rows sorted by video and time, with types renumbered by ``type_map``. The buffer must not be used afterwards."""
        n = self.n
        video, time_us = self.video[:n], self.time_us[:n]
        step = np.diff(video)
        if np.any(step < 0) or np.any((step == 0) & (np.diff(time_us) < 0)):
            order = np.lexsort((time_us, video))
            for name in _COLUMNS:
                setattr(self, name, getattr(self, name)[:n][order])
        offsets = np.zeros(n_videos + 1, np.int64)
        np.cumsum(np.bincount(self.video[:n], minlength=n_videos), out=offsets[1:])
        types = type_map[self.type[:n]] if n else self.type[:0]
        return Rows(self.video[:n], self.time_us[:n], types, self.value[:n], self.reach[:n], offsets)
