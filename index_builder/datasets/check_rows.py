"""Reports what is wrong with events.parquet and counters.parquet.

``types`` maps each engagement type to a code, in order of appearance. The checks add new types to ``types``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.check_videos import CheckedVideos
from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, MAX_TYPES, VIDEOS_FILE
from index_builder.datasets.findings import Findings
from index_builder.datasets.parquet_files import ParquetTable
from index_builder.datasets.signals.choice import choose_signals
from index_builder.datasets.signals.columns import SignalBuffer, signal_columns
from model.engagement.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES

_SUSPICIOUS_FALLS: Final = 0.05
"""Minimum fraction of readings below the previous reading for the warning that a counter may hold increments.

In a cumulative counter, such readings are much rarer, because platforms remove far fewer counts.
"""
_MIN_FALLS: Final = 10
"""Minimum number of readings below the previous reading for the warning that a counter may hold increments."""
_INCREMENTS: Final = (
    "are these increments? A counter is a running total; "
    "give increments as events.parquet, with video_id, time, type and count"
)
_PAIR: Final = 1 << 20
"""Factor for encoding (video, type) as one number: video * factor + type code. All type codes are smaller than the factor."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one file, in file order.

    ``video`` (n,) int64: index of the row's video, -1 if the row is not usable.
    ``time_us`` (n,) int64: time in microseconds since 1970 UTC.
    """

    video: Ints
    time_us: Ints

    @staticmethod
    def joined(parts: list[_Rows]) -> _Rows:
        return _Rows(np.concatenate([r.video for r in parts]), np.concatenate([r.time_us for r in parts]))

    def sorted(self, *keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Sort the usable rows by video, time and ``keys``.

        Return the row numbers in sorted order, and one flag for each row but the first. The flag is True if the row
        has the same video and time as the row before it.
        """
        order = np.flatnonzero(self.video >= 0)
        order = order[np.lexsort((*(key[order] for key in keys), self.time_us[order], self.video[order]))]
        return order, (np.diff(self.video[order]) == 0) & (np.diff(self.time_us[order]) == 0)


def _locate(file: str, batch: pa.RecordBatch, videos: CheckedVideos | None, start: int, log: Findings) -> _Rows:
    """Return the video and time of each row, and add findings about rows that lack a video or a time."""
    names = log.text("error", file, "video_id", batch.column("video_id"), start)
    empty = parquet_columns.empty(names)
    log.rows("error", file, "video_id", "empty; left out", empty, start, [""] * len(names))
    times = log.times(file, "time", batch.column("time"), start)
    if videos is None:
        return _Rows(np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64))
    video = parquet_columns.positions(names, videos.ids)
    log.rows("warning", file, "video_id", f"not in {VIDEOS_FILE}; left out", (video < 0) & ~empty, start, names)
    early = np.zeros(len(video), np.bool_)
    located = (video >= 0) & ~times.missing()
    early[located] = times.us[located] < videos.published_us[video[located]]
    log.rows("warning", file, "time", "before publication; left out", early, start, times.us.view("datetime64[us]"))
    return _Rows(np.where(located & ~early, video, -1), times.us)


def check_events(table: ParquetTable, videos: CheckedVideos | None, types: dict[str, int], log: Findings) -> Ints:
    """Add findings about the events. Return the (video, type) pairs that have events.

    Each pair is encoded as one number. The numbers are distinct and sorted.
    """
    parts: list[_Rows] = []
    cells: list[tuple[Ints, Ints, Ints]] = []
    unusual: dict[str, int] = {}
    start = 0
    for batch in table.batches():
        rows = _locate(EVENTS_FILE, batch, videos, start, log)
        codes, untyped = _check_types(batch.column("type"), types, unusual, start, log)
        count, unusable = _check_counts(batch, start, log)
        cells.append((codes, count, _check_reach(batch, start, log)))
        parts.append(_Rows(np.where(untyped | unusable, -1, rows.video), rows.time_us))
        start += len(batch)
    if unusual:
        shown = ", ".join(sorted(unusual)[:5]) + (", ..." if len(unusual) > 5 else "")
        problem = f"types other than {', '.join(ENGAGEMENT_TYPES)}: {shown}"
        log.numbered("info", EVENTS_FILE, "type", problem, np.array(sorted(unusual.values())))
    if len(types.keys() - {""}) > MAX_TYPES:
        log.note("error", EVENTS_FILE, "type", f"more than {MAX_TYPES} different values")
    if not parts:
        return np.zeros(0, np.int64)
    rows = _Rows.joined(parts)
    columns = [np.concatenate(column) for column in zip(*cells, strict=True)]
    order, same = rows.sorted(*columns)
    for column in columns:
        same &= np.diff(column[order]) == 0
    problem = "equal to another row; both are used"
    log.numbered("warning", EVENTS_FILE, "video_id, time, type", problem, order[1:][same])
    return np.unique(rows.video[order] * np.int64(_PAIR) + columns[0][order])


def _check_types(
    column: pa.Array, types: dict[str, int], unusual: dict[str, int], start: int, log: Findings
) -> tuple[Ints, parquet_columns.Flags]:
    """Return two arrays: the code of each row's type (-1 if the type is null), and whether the type is empty or null.

    ``unusual`` maps each nonstandard type to the first row that has it. This function adds new types to ``unusual``.
    """
    names = log.text("error", EVENTS_FILE, "type", column, start)
    untyped = parquet_columns.empty(names)
    log.rows("warning", EVENTS_FILE, "type", "empty; left out", untyped, start, [""] * len(names))
    encoded = names.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    for name in found:
        if name and name not in ENGAGEMENT_TYPES and len(unusual) <= MAX_TYPES:
            unusual.setdefault(name, start + pc.index(names, name).as_py())
    codes = np.array([types.setdefault(name or "", len(types)) for name in found] + [-1], np.int64)
    return codes[encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)], untyped


def _check_counts(batch: pa.RecordBatch, start: int, log: Findings) -> tuple[Ints, parquet_columns.Flags]:
    """Return the count of each row and flags of the rows that are left out because of their count.

    The count is 1 if the file has no column of counts.
    """
    if "count" not in batch.schema.names:
        return np.ones(len(batch), np.int64), np.zeros(len(batch), np.bool_)
    cells = batch.column("count")
    counts = log.counts(EVENTS_FILE, "count", cells, start)
    missing = counts.null | counts.nan
    log.rows("error", EVENTS_FILE, "count", "empty or NaN", missing, start, cells)
    wrong = missing | counts.invalid()
    zero = ~wrong & (counts.values == 0)
    log.rows("warning", EVENTS_FILE, "count", "0; left out", zero, start, cells)
    return counts.values, wrong | zero


def _check_reach(batch: pa.RecordBatch, start: int, log: Findings) -> Ints:
    """Return the reach of each row, or 0 where it is unknown."""
    if "reach" not in batch.schema.names:
        return np.zeros(len(batch), np.int64)
    cells = batch.column("reach")
    counts = parquet_columns.counts(cells)
    wrong = counts.invalid() | counts.nan
    log.rows("warning", EVENTS_FILE, "reach", "not a number >= 0; read as unknown", wrong, start, cells)
    return counts.values


def check_counters(
    table: ParquetTable, videos: CheckedVideos | None, types: dict[str, int], event_pairs: Ints | None, log: Findings
) -> None:
    """Add findings about the counters. ``event_pairs`` are the encoded (video, type) pairs that have events."""
    parts: list[_Rows] = []
    values: dict[str, list[Ints]] = {}
    names, unread = signal_columns(table)
    signals = SignalBuffer(names)
    start = 0
    for batch in table.batches(names):
        located = _locate(COUNTERS_FILE, batch, videos, start, log)
        parts.append(located)
        signals.add(batch, located.video, located.time_us, located.video >= 0)
        for name in COUNTER_COLUMNS:
            if name in batch.schema.names:
                cells = batch.column(name)
                counts = log.counts(COUNTERS_FILE, name, cells, start)
                log.rows("warning", COUNTERS_FILE, name, "NaN; read as not observed", counts.nan, start, cells)
                missing = counts.null | counts.nan | counts.invalid()
                values.setdefault(name, []).append(np.where(missing, -1, counts.values))
        start += len(batch)
    n_videos = max((int(part.video.max(initial=-1)) for part in parts), default=-1) + 1
    for choice in choose_signals(signals.rows(n_videos)):
        verb = "is not read" if choice.signal is None else "is read"
        log.note("info", COUNTERS_FILE, choice.name, f"this column {verb}: {choice.reason}")
    for name, reason in unread.items():
        log.note("info", COUNTERS_FILE, name, f"this column is not read: {reason}")
    if not parts:
        return
    rows = _Rows.joined(parts)
    order, same = rows.sorted()
    log.numbered(
        "warning", COUNTERS_FILE, "video_id, time", "observed twice; the larger value is used", order[1:][same]
    )
    if len(order) > 1 and not np.any((np.diff(rows.video[order]) == 0) & ~same):
        log.note("warning", COUNTERS_FILE, "time", "every video has only one reading: there is no growth to learn from")
    for name, chunks in values.items():
        column = np.concatenate(chunks)
        observed = order[column[order] >= 0]
        _check_growth(name, rows.video[observed], column[observed], observed, log)
        event_type = COUNTER_COLUMNS[name]
        if event_pairs is not None and (code := types.get(event_type)) is not None:
            mixed = observed[np.isin(rows.video[observed] * np.int64(_PAIR) + code, event_pairs)]
            problem = (
                f"also has events of type {event_type!r}; "
                "a type of a video may have events or counters, not both, so the events are left out"
            )
            log.numbered("error", COUNTERS_FILE, name, problem, mixed)
        if len(observed):
            types.setdefault(event_type, len(types))


def _check_growth(name: str, video: Ints, value: Ints, row: Ints, log: Findings) -> None:
    """Report a counter that falls (a reading is lower than the one before it), and a counter that never grows.

    All arrays have shape (n,) and are sorted by video and time.
    """
    again, step = np.diff(video) == 0, np.diff(value)
    falls = again & (step < 0)
    log.numbered("warning", COUNTERS_FILE, name, "falls; the larger value is used", row[1:][falls])
    if falls.sum() >= _MIN_FALLS and (share := falls.sum() / again.sum()) >= _SUSPICIOUS_FALLS:
        problem = f"{share:.0%} of the readings are below the one before: {_INCREMENTS}"
        log.note("warning", COUNTERS_FILE, name, problem)
    if again.any() and not step[again].any():
        problem = "is the same at every reading of a video: there is no growth to learn from"
        log.note("warning", COUNTERS_FILE, name, problem)
