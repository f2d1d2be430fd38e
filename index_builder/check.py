"""What is wrong with a data set, by file, column and row (command ``m3tr-build check``).

Nothing is changed. Memory is a few numbers a row. ``index_builder.findings`` says what the severities mean.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder import columns
from index_builder.findings import Finding, Findings
from index_builder.layout import COUNTERS, EVENTS, LAYOUT, MAX_TYPES, NUMBER_FIELDS, VIDEOS, faults
from model.errors import DataError
from model.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES, check_types

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
    if VIDEOS not in there:
        log.note("error", VIDEOS, "", "the file is missing")
    if EVENTS not in there and COUNTERS not in there:
        log.note("error", EVENTS, "", f"neither this file nor {COUNTERS} is there; at least one is required")
    usable = [name for name in there if _check_layout(path / name, log)]
    videos = _check_videos(path / VIDEOS, log) if VIDEOS in usable else None
    kinds: dict[str, int] = {}
    fed = _check_events(path / EVENTS, videos, kinds, log) if EVENTS in usable else None
    if COUNTERS in usable:
        _check_counters(path / COUNTERS, videos, kinds, fed, log)
    try:
        check_types(kinds)
    except DataError as error:
        log.note("error", EVENTS, "type", str(error).removeprefix("type: "))
    return log.sorted()


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


def _check_layout(path: Path, log: Findings) -> bool:
    """Note missing and wrong columns; return whether the rows can be read."""
    try:
        with columns.open_parquet(path) as file:
            schema = file.schema_arrow
    except DataError as error:
        log.note("error", path.name, "", str(error))
        return False
    broken = list(faults(path.name, schema))
    for fault in broken:
        log.note("error", path.name, fault.column, f"is {fault.found}; allowed: {fault.allowed}")
    for name in ("published_at", "time"):
        if name in schema.names and name in LAYOUT[path.name]:
            kind = schema.field(name).type
            if pa.types.is_timestamp(kind) and kind.tz is None:
                log.note("warning", path.name, name, "has no time zone; it is read as UTC")
    return not broken


def _check_videos(path: Path, log: Findings) -> _Videos | None:
    ids: list[pa.Array] = []
    published: list[NDArray[np.int64]] = []
    start = 0
    for batch in columns.batches(path, LAYOUT[VIDEOS]):
        names = columns.text(batch.column("video_id"))
        log.rows("error", VIDEOS, "video_id", "empty", _empty(names), start, [""] * len(names))
        times = log.times(VIDEOS, "published_at", batch.column("published_at"), start)
        if times is None:
            return None
        for name in NUMBER_FIELDS:
            if name in batch.schema.names:
                real = batch.column(name).cast(pa.float64())
                below = pc.less(real, 0.0).fill_null(False).to_numpy(zero_copy_only=False)
                log.rows("warning", VIDEOS, name, "negative; read as missing", below, start, real)
        ids.append(names)
        published.append(np.where(times.null, np.iinfo(np.int64).min, times.us))
        start += len(batch)
    if not ids:
        return _Videos(pa.array([], pa.large_string()), np.zeros(0, np.int64))
    every = pa.concat_arrays(ids)
    codes = every.dictionary_encode()
    order = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.unique(order, return_index=True)[1]
    repeated = np.ones(len(order), np.bool_)
    repeated[first] = False
    repeated &= ~_empty(every)
    log.rows("error", VIDEOS, "video_id", "there more than once", repeated, 0, every)
    known = np.sort(first[order[first] >= 0])
    return _Videos(every.take(pa.array(known)), np.concatenate(published)[known])


def _empty(names: pa.Array) -> columns.Flags:
    flags = pc.or_kleene(pc.is_null(names), pc.equal(names, "")).fill_null(True)
    return np.asarray(flags.to_numpy(zero_copy_only=False), np.bool_)


def _place(file: str, batch: pa.RecordBatch, videos: _Videos | None, start: int, log: Findings) -> _Row:
    """Video and time of each row, after noting rows that have neither."""
    names = batch.column("video_id")
    empty = _empty(columns.text(names))
    log.rows("error", file, "video_id", "empty", empty, start, [""] * len(names))
    times = log.times(file, "time", batch.column("time"), start)
    if times is None or videos is None:
        return _Row(np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64))
    video = columns.positions(names, videos.ids)
    log.rows("warning", file, "video_id", f"not in {VIDEOS}; left out", (video < 0) & ~empty, start, names)
    early = np.zeros(len(video), np.bool_)
    placed = (video >= 0) & ~times.null
    early[placed] = times.us[placed] < videos.published_us[video[placed]]
    log.rows("warning", file, "time", "before publication; left out", early, start, times.us.view("datetime64[us]"))
    return _Row(np.where(placed & ~early, video, -1), times.us)


def _check_events(path: Path, videos: _Videos | None, kinds: dict[str, int], log: Findings) -> NDArray[np.int64]:
    """Note what is wrong with the events; return the (video, type) pairs they feed, one sorted number each."""
    placed: list[_Row] = []
    cells: list[NDArray[np.int64]] = []
    strange: dict[str, int] = {}
    start = 0
    for batch in columns.batches(path, LAYOUT[EVENTS]):
        row = _place(EVENTS, batch, videos, start, log)
        names = columns.text(batch.column("type"))
        untyped = _empty(names)
        log.rows("warning", EVENTS, "type", "empty; left out", untyped, start, [""] * len(names))
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
            counts = log.counts(EVENTS, "count", array, start)
            log.rows("error", EVENTS, "count", "empty or NaN", counts.null | counts.nan, start, array)
            value = counts.values
            wrong = counts.null | counts.nan | counts.invalid()
            nothing = ~wrong & (value == 0)
            left_out = untyped | wrong | nothing
            log.rows("warning", EVENTS, "count", "0; left out", nothing, start, array)
        reach = np.zeros(len(names), np.int64)
        if "reach" in batch.schema.names:
            counts = columns.counts(batch.column("reach"))
            wrong = counts.invalid() | counts.nan
            log.rows(
                "warning", EVENTS, "reach", "not a number >= 0; read as unknown", wrong, start, batch.column("reach")
            )
            reach = counts.values
        placed.append(_Row(np.where(left_out, -1, row.video), row.time_us))
        cells.append(np.stack([kind, value, reach], axis=1))
        start += len(batch)
    if strange:
        shown = ", ".join(sorted(strange)[:5]) + (", ..." if len(strange) > 5 else "")
        problem = f"types besides {', '.join(ENGAGEMENT_TYPES)}: {shown}"
        log.numbered("info", EVENTS, "type", problem, np.array(sorted(strange.values())))
    if len(strange) > MAX_TYPES:
        log.note("error", EVENTS, "type", f"more than {MAX_TYPES} different values")
    if not placed:
        return np.zeros(0, np.int64)
    row, cell = _join(placed), np.concatenate(cells)
    order = np.flatnonzero(row.video >= 0)
    order = order[np.lexsort((*cell[order].T, row.time_us[order], row.video[order]))]
    same = (np.diff(row.video[order]) == 0) & (np.diff(row.time_us[order]) == 0)
    same &= (np.diff(cell[order], axis=0) == 0).all(axis=1)
    log.numbered("warning", EVENTS, "video_id, time, type", "equal to another row; both are used", order[1:][same])
    return np.unique(row.video[order] * np.int64(_PAIR) + cell[order, 0])


def _check_counters(
    path: Path, videos: _Videos | None, kinds: dict[str, int], fed: NDArray[np.int64] | None, log: Findings
) -> None:
    """Note what is wrong with the counters; ``fed`` are the (video, type) pairs that have events."""
    placed: list[_Row] = []
    values: dict[str, list[NDArray[np.int64]]] = {}
    start = 0
    for batch in columns.batches(path, LAYOUT[COUNTERS]):
        placed.append(_place(COUNTERS, batch, videos, start, log))
        for name in COUNTER_COLUMNS:
            if name in batch.schema.names:
                array = batch.column(name)
                counts = log.counts(COUNTERS, name, array, start)
                log.rows("warning", COUNTERS, name, "NaN; read as not observed", counts.nan, start, array)
                unseen = counts.null | counts.nan | counts.invalid()
                values.setdefault(name, []).append(np.where(unseen, -1, counts.values))
        start += len(batch)
    if not placed:
        return
    row = _join(placed)
    order = np.flatnonzero(row.video >= 0)
    order = order[np.lexsort((row.time_us[order], row.video[order]))]
    same = (np.diff(row.video[order]) == 0) & (np.diff(row.time_us[order]) == 0)
    log.numbered("warning", COUNTERS, "video_id, time", "observed twice; the larger value stands", order[1:][same])
    for name, chunks in values.items():
        column = np.concatenate(chunks)
        seen = order[column[order] >= 0]
        falls = (np.diff(row.video[seen]) == 0) & (np.diff(column[seen]) < 0)
        log.numbered("warning", COUNTERS, name, "falls; the larger value stands", seen[1:][falls])
        if fed is not None and (code := kinds.get(COUNTER_COLUMNS[name])) is not None:
            mixed = seen[np.isin(row.video[seen] * np.int64(_PAIR) + code, fed)]
            problem = f"has events of type {COUNTER_COLUMNS[name]!r} too; one type of one video has either"
            log.numbered("error", COUNTERS, name, problem, mixed)
        if len(seen):
            kinds.setdefault(COUNTER_COLUMNS[name], len(kinds))


def _join(rows: list[_Row]) -> _Row:
    return _Row(np.concatenate([r.video for r in rows]), np.concatenate([r.time_us for r in rows]))
