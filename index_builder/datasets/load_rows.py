"""Reads events.parquet and counters.parquet into row buffers.

``types`` maps each engagement type to a code, in order of appearance. The readers add new types to ``types``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.dropped_rows import DroppedRows
from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, MAX_TYPES
from index_builder.datasets.parquet_columns import Flags
from index_builder.datasets.parquet_files import ParquetTable
from index_builder.datasets.row_buffer import RowBuffer
from index_builder.datasets.signals.columns import SignalBuffer, signal_columns
from model.engagement.signals import SignalRows
from model.engagement.types import COUNTER_COLUMNS
from model.engagement.video import Video
from model.errors import DataError

_COUNT_FAULTS = ("negative", "fractional", "too_large")


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """Finds the video of each row.

    ``ids`` (V,) and ``published_us`` (V,) int64 are in the order of the data set. Rows later than ``before_us`` are
    ignored, and ``dropped`` does not count them.
    """

    ids: pa.Array
    published_us: NDArray[np.int64]
    before_us: int
    dropped: DroppedRows

    def locate(self, file: str, batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], Flags]:
        """Return the video index (n,) and the time (n,) in microseconds of each row of a batch, and flags (n,) of the usable rows."""
        time = parquet_columns.times(batch.column("time"))
        missing = time.missing()
        known = missing | (time.us <= self.before_us)
        video = parquet_columns.positions(batch.column("video_id"), self.ids)
        unknown_video = known & (video < 0)
        no_time = known & ~unknown_video & missing
        keep = known & ~unknown_video & ~no_time
        early = np.zeros(len(keep), np.bool_)
        early[keep] = time.us[keep] < self.published_us[video[keep]]
        self.drop(file, "unknown video", unknown_video)
        self.drop(file, "no time", no_time & time.null)
        self.drop(file, f"time outside {parquet_columns.YEARS}", no_time & time.out_of_range)
        self.drop(file, "before publication", early)
        return video, time.us, keep & ~early

    def drop(self, file: str, reason: str, rows: Flags) -> None:
        """Count the flagged rows of the current batch as dropped."""
        self.dropped.add(file, reason, rows)


def read_events(table: ParquetTable, index: VideoIndex, types: dict[str, int]) -> RowBuffer:
    """Return the usable rows of events.parquet."""
    buffer = RowBuffer(table.rows)
    for batch in table.batches():
        video, time_us, keep = index.locate(EVENTS_FILE, batch)
        type_codes, has_type = _type_codes(batch.column("type"), types)
        index.drop(EVENTS_FILE, "no type", keep & ~has_type)
        keep &= has_type
        value = np.ones(len(keep), np.int64)
        if "count" in batch.schema.names:
            count = parquet_columns.counts(batch.column("count"))
            value, missing = count.values, count.null | count.nan
            faults = {"no count": missing}
            faults |= {f"count {fault.replace('_', ' ')}": getattr(count, fault) for fault in _COUNT_FAULTS}
            faults["count 0"] = ~missing & ~count.invalid() & (value == 0)
            for reason, rows in faults.items():
                index.drop(EVENTS_FILE, reason, keep & rows)
                keep &= ~rows
        reach = np.zeros(len(keep), np.int64)
        if "reach" in batch.schema.names:
            reach = parquet_columns.counts(batch.column("reach")).values
        buffer.add(keep, video=video, time_us=time_us, type=type_codes, value=value, reach=reach)
        index.dropped.start += len(batch)
    index.dropped.start = 0
    return buffer


def _type_codes(array: pa.Array, types: dict[str, int]) -> tuple[NDArray[np.int64], Flags]:
    """Return two arrays: the code of each row's type (-1 if the row has no type), and whether the row has a type."""
    encoded = parquet_columns.text(array).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = np.array([types.setdefault(name, len(types)) if name else -1 for name in names] + [-1], np.int64)
    if len(types) > MAX_TYPES:
        raise DataError(
            f"{EVENTS_FILE}: column type: has more than {MAX_TYPES} different values, such as {names[-1]!r}"
        )
    found = codes[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return found, found >= 0


def read_counters(
    table: ParquetTable, index: VideoIndex, types: dict[str, int]
) -> tuple[RowBuffer, dict[str, SignalRows]]:
    """Return the usable cells of counters.parquet, as one row per cell, and the readings of each signal."""
    signal_names, _ = signal_columns(table)
    signals = SignalBuffer(signal_names)
    names = [name for name in COUNTER_COLUMNS if name in table.names]
    codes = np.array([types.setdefault(COUNTER_COLUMNS[name], len(types)) for name in names], np.int64)
    buffer = RowBuffer(table.rows * len(names))
    for batch in table.batches(signal_names):
        video, time_us, keep = index.locate(COUNTERS_FILE, batch)
        signals.add(batch, video, time_us, keep)
        value = np.empty((len(keep), len(names)), np.int64)
        usable = np.empty((len(keep), len(names)), np.bool_)
        for column, name in enumerate(names):
            count = parquet_columns.counts(batch.column(name))
            for fault in _COUNT_FAULTS:
                index.drop(COUNTERS_FILE, f"{name} {fault.replace('_', ' ')}", keep & getattr(count, fault))
            value[:, column] = count.values
            usable[:, column] = keep & ~count.null & ~count.nan & ~count.invalid()
        buffer.add(
            usable.ravel(),
            video=np.repeat(video, len(names)),
            time_us=np.repeat(time_us, len(names)),
            type=np.tile(codes, len(keep)),
            value=value.ravel(),
            reach=np.zeros(usable.size, np.int64),
        )
        index.dropped.start += len(batch)
    index.dropped.start = 0
    return buffer, signals.rows(len(index.ids))


def drop_mixed_events(
    videos: list[Video], events: RowBuffer, counters: RowBuffer, types: list[str], dropped: DroppedRows
) -> None:
    """Drop the events of each pair (video, type) that also has counters. The counters already include these events."""
    pairs = events.pairs(len(types))
    mixed = np.isin(pairs, np.unique(counters.pairs(len(types))))
    if mixed.any():
        video, code = divmod(int(pairs[mixed].min()), len(types))
        description = f"of video {videos[video].video_id!r}, type {types[code]!r}"
        reason = f"this type of the video is also in {COUNTERS_FILE}, which is used instead"
        dropped.count(EVENTS_FILE, reason, int(mixed.sum()), description)
        events.keep(~mixed)
