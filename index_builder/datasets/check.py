"""What is wrong with a data set, by file, column and row (command ``m3tr-build check``).

Nothing is changed. Memory is a few numbers a row. ``index_builder.datasets.findings`` says what the severities mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.column_matching import similar_column
from index_builder.datasets.file_format import (
    COUNTERS_FILE,
    EVENTS_FILE,
    LAYOUT,
    MAX_TYPES,
    NUMBER_FIELDS,
    TEXT_FIELDS,
    VIDEOS_FILE,
)
from index_builder.datasets.findings import Finding, Findings
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES, check_types
from model.errors import DataError

_FALLING: Final = 0.05
"""Share of readings below the one before from which increments are suspected; platforms take back far fewer counts."""
_LEAST_FALLS: Final = 10
_INCREMENTS: Final = (
    "are these increments? A counter is a running total; "
    "give increments as events.parquet, with video_id, time, type and count"
)
_UNKNOWN: Final = np.iinfo(np.int64).min
"""Time of publication of a video that has none that can be used."""
_PAIR: Final = 1 << 20
"""Room for type codes in a (video, type) number."""


def check_dataset(path: Path, *, now_us: int | None = None) -> list[Finding]:
    """Every finding, errors first; ``now_us`` (default: the clock) is the time after which a row is from the future."""
    path = Path(path)
    log = Findings(time.time_ns() // 1000 if now_us is None else now_us)
    if not path.is_dir():
        log.note("error", str(path), "", "no such folder")
        return log.sorted()
    there = [name for name in LAYOUT if (path / name).exists()]
    if VIDEOS_FILE not in there:
        log.note("error", VIDEOS_FILE, "", "the file is missing")
    if EVENTS_FILE not in there and COUNTERS_FILE not in there:
        log.note("error", EVENTS_FILE, "", f"neither this file nor {COUNTERS_FILE} is there; at least one is required")
    tables = {name: table for name in there if (table := _open(path / name, log))}
    videos, kinds, fed = None, dict[str, int](), None
    with _damage(VIDEOS_FILE, log):
        videos = _check_videos(tables[VIDEOS_FILE], log) if VIDEOS_FILE in tables else None
    with _damage(EVENTS_FILE, log):
        fed = _check_events(tables[EVENTS_FILE], videos, kinds, log) if EVENTS_FILE in tables else None
    with _damage(COUNTERS_FILE, log):
        if COUNTERS_FILE in tables:
            _check_counters(tables[COUNTERS_FILE], videos, kinds, fed, log)
    try:
        check_types(kinds)
    except DataError as error:
        log.note("error", EVENTS_FILE, "type", str(error).removeprefix("type: "))
    return log.sorted()


@contextmanager
def _damage(file: str, log: Findings) -> Iterator[None]:
    """Notes that a file cannot be read to its end."""
    try:
        yield
    except DataError as error:
        log.note("error", file, "", str(error))


@dataclass(frozen=True, slots=True)
class _Videos:
    """``ids`` (V,) distinct; ``published_us`` (V,) int64, the earliest possible time where unknown."""

    ids: pa.Array
    published_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Row:
    """Rows of one file in file order: ``video`` (n,) int64, -1 if not usable; ``time_us`` (n,) int64."""

    video: NDArray[np.int64]
    time_us: NDArray[np.int64]


def _open(path: Path, log: Findings) -> ParquetTable | None:
    """Note missing, wrong and unknown columns; return the table if its rows can be read."""
    try:
        table = ParquetTable(path)
    except DataError as error:
        log.note("error", path.name, "", str(error))
        return None
    broken = False
    for name, fault in table.faults():
        log.note("error", name, fault.column, f"is {fault.found}; allowed: {fault.allowed}")
        broken = True
    for name in table.left_out:
        log.note("warning", path.name, "", f"{name} in the folder is no Parquet file; left out")
    for (column, found), name in {  # one finding for all parts
        (column, found): part.name for part in reversed(table.parts) for column, found in part.match.names.items()
    }.items():
        if found != column:
            log.note("info", name, column, f"is called {found!r} here")
    names = {column: column for column in table.names}
    unknown = dict.fromkeys(column for part in table.parts for column in part.match.unknown)
    likely = {column: similar for column in unknown if (similar := similar_column(path.name, column, names))}
    for column, similar in likely.items():
        log.note("warning", path.name, column, f"no column that is read; did you mean {similar}?")
    if rest := [column for column in unknown if column not in likely]:
        log.note(
            "info",
            path.name,
            "",
            f"columns that are not read: {', '.join(rest[:20])}{', ...' if len(rest) > 20 else ''}",
        )
    for column in ("published_at", "time"):
        kinds = [part.schema.field(part.match.names[column]).type for part in table.parts if column in part.match.names]
        if any(map(parquet_columns.is_naive, kinds)):
            log.note("warning", path.name, column, "has no time zone; it is read as UTC")
    return None if broken else table


def _check_videos(table: ParquetTable, log: Findings) -> _Videos:
    ids: list[pa.Array] = []
    published: list[NDArray[np.int64]] = []
    start = 0
    for batch in table.batches():
        names = log.text("error", VIDEOS_FILE, "video_id", batch.column("video_id"), start)
        log.rows(
            "error", VIDEOS_FILE, "video_id", "empty; left out", parquet_columns.empty(names), start, [""] * len(names)
        )
        times = log.times(VIDEOS_FILE, "published_at", batch.column("published_at"), start)
        for name in TEXT_FIELDS:
            if name in batch.schema.names and parquet_columns.is_text(batch.schema.field(name).type):
                log.text("warning", VIDEOS_FILE, name, batch.column(name), start)
        for name in NUMBER_FIELDS:
            if name in batch.schema.names:
                cells = batch.column(name)
                real = parquet_columns.numbers(cells)
                log.rows("warning", VIDEOS_FILE, name, "negative; read as missing", real.negative, start, cells)
                log.rows("warning", VIDEOS_FILE, name, "too large; read as missing", real.too_large, start, cells)
        ids.append(names)
        published.append(np.where(times.missing(), _UNKNOWN, times.us))
        start += len(batch)
    if not ids:
        return _Videos(pa.array([], pa.large_string()), np.zeros(0, np.int64))
    every, published_us = pa.concat_arrays(ids), np.concatenate(published)
    usable = ~parquet_columns.empty(every) & (published_us != _UNKNOWN)
    codes = every.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    codes[~usable] = -1
    first = np.unique(codes, return_index=True)[1]
    repeated = usable.copy()
    repeated[first] = False
    log.rows("error", VIDEOS_FILE, "video_id", "there more than once; the first row stands", repeated, 0, every)
    known = np.sort(first[codes[first] >= 0])
    return _Videos(every.take(pa.array(known)), published_us[known])


def _place(file: str, batch: pa.RecordBatch, videos: _Videos | None, start: int, log: Findings) -> _Row:
    """Video and time of each row, after noting rows that have neither."""
    names = log.text("error", file, "video_id", batch.column("video_id"), start)
    empty = parquet_columns.empty(names)
    log.rows("error", file, "video_id", "empty; left out", empty, start, [""] * len(names))
    times = log.times(file, "time", batch.column("time"), start)
    if videos is None:
        return _Row(np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64))
    video = parquet_columns.positions(names, videos.ids)
    log.rows("warning", file, "video_id", f"not in {VIDEOS_FILE}; left out", (video < 0) & ~empty, start, names)
    early = np.zeros(len(video), np.bool_)
    placed = (video >= 0) & ~times.missing()
    early[placed] = times.us[placed] < videos.published_us[video[placed]]
    log.rows("warning", file, "time", "before publication; left out", early, start, times.us.view("datetime64[us]"))
    return _Row(np.where(placed & ~early, video, -1), times.us)


def _check_events(
    table: ParquetTable, videos: _Videos | None, kinds: dict[str, int], log: Findings
) -> NDArray[np.int64]:
    """Note what is wrong with the events; return the (video, type) pairs they feed, one sorted number each."""
    placed: list[_Row] = []
    cells: list[NDArray[np.int64]] = []
    strange: dict[str, int] = {}
    start = 0
    for batch in table.batches():
        row = _place(EVENTS_FILE, batch, videos, start, log)
        names = log.text("error", EVENTS_FILE, "type", batch.column("type"), start)
        untyped = parquet_columns.empty(names)
        log.rows("warning", EVENTS_FILE, "type", "empty; left out", untyped, start, [""] * len(names))
        encoded = names.dictionary_encode()
        found = encoded.dictionary.to_pylist()
        for name in found:
            if name and name not in ENGAGEMENT_TYPES and len(strange) <= MAX_TYPES:
                strange.setdefault(name, start + pc.index(names, name).as_py())
        codes = np.array([kinds.setdefault(name or "", len(kinds)) for name in found] + [-1], np.int64)
        kind = codes[encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]
        value, left_out = np.ones(len(names), np.int64), untyped
        if "count" in batch.schema.names:
            array = batch.column("count")
            counts = log.counts(EVENTS_FILE, "count", array, start)
            log.rows("error", EVENTS_FILE, "count", "empty or NaN", counts.null | counts.nan, start, array)
            value = counts.values
            wrong = counts.null | counts.nan | counts.invalid()
            nothing = ~wrong & (value == 0)
            left_out = untyped | wrong | nothing
            log.rows("warning", EVENTS_FILE, "count", "0; left out", nothing, start, array)
        reach = np.zeros(len(names), np.int64)
        if "reach" in batch.schema.names:
            counts = parquet_columns.counts(batch.column("reach"))
            wrong = counts.invalid() | counts.nan
            log.rows(
                "warning",
                EVENTS_FILE,
                "reach",
                "not a number >= 0; read as unknown",
                wrong,
                start,
                batch.column("reach"),
            )
            reach = counts.values
        placed.append(_Row(np.where(left_out, -1, row.video), row.time_us))
        cells.append(np.stack([kind, value, reach], axis=1))
        start += len(batch)
    if strange:
        shown = ", ".join(sorted(strange)[:5]) + (", ..." if len(strange) > 5 else "")
        problem = f"types besides {', '.join(ENGAGEMENT_TYPES)}: {shown}"
        log.numbered("info", EVENTS_FILE, "type", problem, np.array(sorted(strange.values())))
    if len(kinds.keys() - {""}) > MAX_TYPES:
        log.note("error", EVENTS_FILE, "type", f"more than {MAX_TYPES} different values")
    if not placed:
        return np.zeros(0, np.int64)
    row, cell = _join(placed), np.concatenate(cells)
    order = np.flatnonzero(row.video >= 0)
    order = order[np.lexsort((*cell[order].T, row.time_us[order], row.video[order]))]
    same = (np.diff(row.video[order]) == 0) & (np.diff(row.time_us[order]) == 0)
    same &= (np.diff(cell[order], axis=0) == 0).all(axis=1)
    log.numbered("warning", EVENTS_FILE, "video_id, time, type", "equal to another row; both are used", order[1:][same])
    return np.unique(row.video[order] * np.int64(_PAIR) + cell[order, 0])


def _check_counters(
    table: ParquetTable, videos: _Videos | None, kinds: dict[str, int], fed: NDArray[np.int64] | None, log: Findings
) -> None:
    """Note what is wrong with the counters; ``fed`` are the (video, type) pairs that have events."""
    placed: list[_Row] = []
    values: dict[str, list[NDArray[np.int64]]] = {}
    start = 0
    for batch in table.batches():
        placed.append(_place(COUNTERS_FILE, batch, videos, start, log))
        for name in COUNTER_COLUMNS:
            if name in batch.schema.names:
                array = batch.column(name)
                counts = log.counts(COUNTERS_FILE, name, array, start)
                log.rows("warning", COUNTERS_FILE, name, "NaN; read as not observed", counts.nan, start, array)
                unseen = counts.null | counts.nan | counts.invalid()
                values.setdefault(name, []).append(np.where(unseen, -1, counts.values))
        start += len(batch)
    if not placed:
        return
    row = _join(placed)
    order = np.flatnonzero(row.video >= 0)
    order = order[np.lexsort((row.time_us[order], row.video[order]))]
    same = (np.diff(row.video[order]) == 0) & (np.diff(row.time_us[order]) == 0)
    log.numbered("warning", COUNTERS_FILE, "video_id, time", "observed twice; the larger value stands", order[1:][same])
    if len(order) > 1 and not np.any((np.diff(row.video[order]) == 0) & ~same):
        log.note("warning", COUNTERS_FILE, "time", "every video is read once: there is no growth to learn from")
    for name, chunks in values.items():
        column = np.concatenate(chunks)
        seen = order[column[order] >= 0]
        again, step = np.diff(row.video[seen]) == 0, np.diff(column[seen])
        falls = again & (step < 0)
        log.numbered("warning", COUNTERS_FILE, name, "falls; the larger value stands", seen[1:][falls])
        if falls.sum() >= _LEAST_FALLS and (share := falls.sum() / again.sum()) >= _FALLING:
            log.note(
                "warning", COUNTERS_FILE, name, f"{share:.0%} of the readings are below the one before: {_INCREMENTS}"
            )
        if again.any() and not step[again].any():
            log.note(
                "warning",
                COUNTERS_FILE,
                name,
                "is the same at every reading of a video: there is no growth to learn from",
            )
        if fed is not None and (code := kinds.get(COUNTER_COLUMNS[name])) is not None:
            mixed = seen[np.isin(row.video[seen] * np.int64(_PAIR) + code, fed)]
            problem = f"has events of type {COUNTER_COLUMNS[name]!r} too; one type of one video has either, so events are left out"
            log.numbered("error", COUNTERS_FILE, name, problem, mixed)
        if len(seen):
            kinds.setdefault(COUNTER_COLUMNS[name], len(kinds))


def _join(rows: list[_Row]) -> _Row:
    return _Row(np.concatenate([r.video for r in rows]), np.concatenate([r.time_us for r in rows]))
