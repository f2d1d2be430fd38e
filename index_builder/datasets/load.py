"""Reads a data set from its files.

Files are read in batches, directly into arrays. The files' row counts give the sizes of the arrays. So each array is
allocated once, and the data set is never in memory twice. If an as-of time is given, rows and videos after this time
are ignored. Ignored rows and videos are not counted as dropped.

A row or video that cannot be used is dropped. ``DataSet.dropped`` counts dropped rows by reason. A file that cannot
be used raises DataError. ``index_builder.datasets.check`` lists everything that is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from index_builder.datasets.attributes.columns import readable_columns
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.dropped_rows import DroppedRows
from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, VIDEOS_FILE
from index_builder.datasets.load_rows import VideoIndex, drop_mixed_events, read_counters, read_events
from index_builder.datasets.load_videos import read_videos
from index_builder.datasets.parquet_files import ParquetTable
from index_builder.datasets.row_buffer import RowBuffer
from index_builder.datasets.signals.columns import signal_columns
from model.engagement.signals import SignalRows
from model.engagement.types import ENGAGEMENT_TYPES, check_types
from model.errors import DataError

_NO_LIMIT: Final = np.iinfo(np.int64).max


def load_dataset(path: Path, *, before_us: int | None = None) -> DataSet:
    """Read a canonical data set.

    Args:
        path: the folder.
        before_us: as-of time in microseconds UTC. Later rows, and videos published later, are ignored.

    Raises:
        DataError: a file or column is missing or wrong.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such data set folder")
    present = [name for name in (EVENTS_FILE, COUNTERS_FILE) if (path / name).exists()]
    if not present:
        raise DataError(f"{path}: has neither {EVENTS_FILE} nor {COUNTERS_FILE}; at least one is required")
    tables = {name: _validated(path / name) for name in (VIDEOS_FILE, *present)}
    before_us = _NO_LIMIT if before_us is None else before_us
    dropped = DroppedRows()
    videos, published_us = read_videos(tables[VIDEOS_FILE], before_us, dropped)
    ids = pa.array([video.video_id for video in videos], pa.large_string())
    index = VideoIndex(ids, published_us, before_us, dropped)
    codes: dict[str, int] = {}
    buffers: dict[str, RowBuffer] = {}
    signals: dict[str, SignalRows] = {}
    if EVENTS_FILE in present:
        buffers[EVENTS_FILE] = read_events(tables[EVENTS_FILE], index, codes)
    if COUNTERS_FILE in present:
        buffers[COUNTERS_FILE], signals = read_counters(tables[COUNTERS_FILE], index, codes)
        if EVENTS_FILE in present:
            drop_mixed_events(videos, buffers[EVENTS_FILE], buffers[COUNTERS_FILE], list(codes), dropped)
    n_rows = np.zeros(len(codes), np.int64)
    for buffer in buffers.values():
        n_rows += np.bincount(buffer.type[: buffer.n], minlength=len(codes))
    used = {name for name, code in codes.items() if n_rows[code]}
    types = (*(t for t in ENGAGEMENT_TYPES if t in used), *sorted(used - set(ENGAGEMENT_TYPES)))
    check_types(types)
    type_map = np.array([types.index(name) if name in used else -1 for name in codes], np.int16)
    events, counters = (
        buffers[name].rows(len(videos), type_map) if name in buffers else None for name in (EVENTS_FILE, COUNTERS_FILE)
    )
    unread = readable_columns(tables[VIDEOS_FILE])[1]
    if COUNTERS_FILE in present:
        unread |= signal_columns(tables[COUNTERS_FILE])[1]
    return DataSet(videos, published_us, types, events, counters, dict(dropped.counts), dropped.first, unread, signals)


def load_and_report(path: Path, *, before_us: int | None = None) -> DataSet:
    """Load a data set and return it. Print what was left out to standard error."""
    data = load_dataset(path, before_us=before_us)
    for line in data.left_out():
        print(line, file=sys.stderr)
    return data


def _validated(path: Path) -> ParquetTable:
    """Open a file and check its columns.

    Raises:
        DataError: a column is missing or of a wrong type.
    """
    table = ParquetTable(path)
    for name, fault in table.faults():
        raise DataError(f"{name}: column {fault.column}: is {fault.found}; allowed: {fault.allowed}")
    return table
