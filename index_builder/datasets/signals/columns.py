"""Reads the further numeric columns of counters.parquet as signals of the videos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.parquet_columns import Flags
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.signals import ALLOWED_NAME, MAX_SIGNALS, MAX_VALUE, SignalRows, is_signal


def signal_columns(table: ParquetTable) -> tuple[list[str], dict[str, str]]:
    """Return the further columns that are signals, and the other further columns, with the reasons."""
    names: list[str] = []
    unread: dict[str, str] = {}
    for name in table.further:
        types = table.types_of(name)
        if not is_signal(name):
            unread[name] = f"no signal may have this name; allowed: {ALLOWED_NAME}"
        elif not all(parquet_columns.is_number(dtype) for dtype in types):
            unread[name] = f"is {', '.join(map(str, types))}"
        elif len(names) == MAX_SIGNALS:
            unread[name] = f"only {MAX_SIGNALS} signals are read"
        else:
            names.append(name)
    return names, unread


def readings(column: pa.Array) -> NDArray[np.float64]:
    """Return a column's numbers (n,) float64. A number that is missing or outside the limits is NaN."""
    column = parquet_columns.plain(column)
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return np.where(np.abs(values) <= MAX_VALUE, values, np.nan)


class SignalBuffer:
    """Collects the usable readings of each signal, batch by batch."""

    def __init__(self, names: list[str]) -> None:
        self._parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]]
        self._parts = {name: [] for name in names}

    def add(self, batch: pa.RecordBatch, video: NDArray[np.int64], time_us: NDArray[np.int64], keep: Flags) -> None:
        """Add the readings of a batch. ``keep`` (n,) flags the rows whose video and time are usable."""
        for name, parts in self._parts.items():
            value = readings(batch.column(name))
            rows = keep & ~np.isnan(value)
            parts.append((video[rows], time_us[rows], value[rows]))

    def rows(self, n_videos: int) -> dict[str, SignalRows]:
        """Return the readings of each signal that has any, by name."""
        found = {}
        for name, parts in self._parts.items():
            if not parts:
                continue
            video, time_us, value = (np.concatenate(column) for column in zip(*parts, strict=True))
            if not len(video):
                continue
            order = np.lexsort((value, time_us, video))
            offsets = np.zeros(n_videos + 1, np.int64)
            np.cumsum(np.bincount(video, minlength=n_videos), out=offsets[1:])
            found[name] = SignalRows(offsets, time_us[order].astype(np.int64), value[order])
        return found
