"""Writes stored videos as the files of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.datasets.file_format import (
    COLUMN_OF_TYPE,
    COUNTERS_FILE,
    EVENTS_FILE,
    LAYOUT,
    NUMBER_FIELDS,
    TEXT_FIELDS,
    VIDEOS_FILE,
    written_schema,
)
from index_builder.datasets.further_columns import ENCODED, FurtherColumns
from model.engagement.attributes import Attributes
from model.engagement.history import History
from model.engagement.rows import bin_times_us, flat_cells
from model.engagement.video import Video

_BUFFERED_ROWS: Final = 1 << 16
"""Maximum number of rows of each file that are buffered before they are written."""
_SCHEMAS: Final = {file: written_schema(file) for file in LAYOUT}
_EXTENDED: Final = (VIDEOS_FILE, COUNTERS_FILE)
"""Files with further columns."""
for _file in _EXTENDED:
    _SCHEMAS[_file] = _SCHEMAS[_file].append(pa.field(ENCODED, pa.string()))


@dataclass(slots=True)
class Exported:
    """Describes what was written.

    ``rows``: maps a file to its number of rows.
    ``left_out``: maps each type without a counter column to the number of the type's counter cells, which were left
    out. It also maps each attribute with values of several kinds to the number of its values that were left out.
    ``damaged``: maps the id of each video with an unreadable record to the reason. These videos were left out.
    """

    rows: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


class DataSetWriter:
    """Writes the files of a data set to ``folder``. A file is created when its first row is written.

    If there are no counters, events.parquet is created even without rows, because a data set needs at least one of
    the two files.
    """

    def __init__(self, folder: Path) -> None:
        self.exported = Exported()
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in _SCHEMAS}
        self._buffered = dict.fromkeys(_SCHEMAS, 0)
        self._further = {name: FurtherColumns() for name in _EXTENDED}

    def add(self, video: Video, history: History, newest_us: int) -> None:
        """Write a video and its history. ``newest_us`` is the time of the video's newest row."""
        attributes = self._further[VIDEOS_FILE].encode(video.attributes)
        columns = {name: [value] for name, value in _video_columns(video).items()}
        self._write(VIDEOS_FILE, columns | {ENCODED: [attributes]})
        self._add_events(video, history, newest_us)
        self._add_counters(video, history, newest_us)

    def close(self) -> None:
        """Write the buffered rows and close the files."""
        if not self.exported.rows.get(EVENTS_FILE) and not self.exported.rows.get(COUNTERS_FILE):
            self._write(EVENTS_FILE, {name: [] for name in LAYOUT[EVENTS_FILE]})
        for name in self.exported.rows:
            self._flush(name)
        for writer in self._writers.values():
            writer.close()
        for name, further in self._further.items():
            if name in self._writers:
                self.exported.left_out |= further.finish(self._folder / name)

    def _add_events(self, video: Video, history: History, newest_us: int) -> None:
        types = sorted(history.series)
        bins, codes, values, reach = flat_cells(history, "events", types)
        if len(bins):
            self._write(
                EVENTS_FILE,
                {
                    "video_id": [video.video_id] * len(bins),
                    "time": bin_times_us(bins, video.published_us, newest_us),
                    "type": pa.array(types, pa.string()).take(pa.array(codes)),
                    "count": values,
                    "reach": reach,
                },
            )

    def _add_counters(self, video: Video, history: History, newest_us: int) -> None:
        counted = {name: series for name, series in history.series.items() if series.mode == "counters"}
        for name in counted.keys() - COLUMN_OF_TYPE.keys():
            self.exported.left_out[name] = self.exported.left_out.get(name, 0) + len(counted[name].bins)
        known = {name: series for name, series in counted.items() if name in COLUMN_OF_TYPE}
        observed = [s.bins for s in known.values()] + [readings.bins for readings in history.signals.values()]
        if not observed:
            return
        bins = np.unique(np.concatenate(observed))
        rows: dict[str, Any] = {
            "video_id": [video.video_id] * len(bins),
            "time": bin_times_us(bins, video.published_us, newest_us),
        }
        for name, column in COLUMN_OF_TYPE.items():
            values, missing = np.zeros(len(bins), np.int64), np.ones(len(bins), np.bool_)
            if name in known:
                at = np.searchsorted(bins, known[name].bins)
                values[at], missing[at] = known[name].values, False
            rows[column] = pa.array(values, mask=missing)
        if len(bins):
            rows[ENCODED] = [self._further[COUNTERS_FILE].encode(values) for values in _readings_by_bin(history, bins)]
            self._write(COUNTERS_FILE, rows)

    def _write(self, name: str, rows: dict[str, Any]) -> None:
        schema = _SCHEMAS[name]
        table = pa.table({column: pa.array(rows[column]).cast(schema.field(column).type) for column in rows}, schema)
        self._tables[name].append(table)
        self._buffered[name] += len(table)
        self.exported.rows[name] = self.exported.rows.get(name, 0) + len(table)
        if self._buffered[name] >= _BUFFERED_ROWS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if name not in self._writers:
            self._writers[name] = pq.ParquetWriter(self._folder / name, _SCHEMAS[name], compression="zstd")
        if self._tables[name]:
            self._writers[name].write_table(pa.concat_tables(self._tables[name]))
        self._tables[name], self._buffered[name] = [], 0


def _readings_by_bin(history: History, bins: NDArray[np.int64]) -> list[Attributes]:
    """Return the names and readings of the signals in each of ``bins``."""
    rows: list[dict[str, float]] = [{} for _ in bins]
    for name, readings in history.signals.items():
        for at, value in zip(np.searchsorted(bins, readings.bins).tolist(), readings.values.tolist(), strict=True):
            rows[at][name] = value
    return [tuple(row.items()) for row in rows]


def _video_columns(video: Video) -> dict[str, Any]:
    fields = {name: getattr(video, name) for name in (*TEXT_FIELDS, *NUMBER_FIELDS)}
    return {"video_id": video.video_id, "published_at": video.published_us, **fields}
