"""Reads a data set from its files.

Files stream by in batches, straight into arrays sized by the files' row counts, so that the set is never in memory
twice. With an as-of time, what is later never enters: neither rows nor videos, and not the counts of dropped rows.

A row that cannot be used is dropped and counted by reason in ``DataSet.dropped``, that of a video too; a file that cannot be
used raises DataError. ``index_builder.datasets.check`` tells the whole of what is wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.file_format import (
    COUNTERS_FILE,
    EVENTS_FILE,
    MAX_TYPES,
    NUMBER_FIELDS,
    TEXT_FIELDS,
    VIDEOS_FILE,
)
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES, check_types
from model.engagement.video import Video
from model.errors import DataError

_LATEST: Final = np.iinfo(np.int64).max


class _Sink:
    """Arrays of one file's usable rows, filled from the front."""

    def __init__(self, capacity: int) -> None:
        self.video = np.empty(capacity, np.int32)
        self.time_us = np.empty(capacity, np.int64)
        self.type = np.empty(capacity, np.int16)
        self.value = np.empty(capacity, np.int64)
        self.reach = np.empty(capacity, np.int64)
        self.n = 0

    def add(self, keep: parquet_columns.Flags, **arrays: NDArray[np.int64]) -> None:
        end = self.n + int(keep.sum())
        for name, array in arrays.items():
            getattr(self, name)[self.n : end] = array[keep]
        self.n = end

    def pairs(self, n_types: int) -> NDArray[np.int64]:
        """Video and type of each row as one number, (n,) int64."""
        return self.video[: self.n].astype(np.int64) * n_types + self.type[: self.n]

    def keep(self, rows: parquet_columns.Flags) -> None:
        """Only the flagged rows, (n,) bool."""
        for name in ("video", "time_us", "type", "value", "reach"):
            setattr(self, name, getattr(self, name)[: self.n][rows])
        self.n = int(rows.sum())

    def rows(self, n_videos: int, type_map: NDArray[np.int16]) -> Rows:
        """Sort, renumber the types by ``type_map``, and give the arrays away."""
        n = self.n
        video, time_us = self.video[:n], self.time_us[:n]
        step = np.diff(video)
        if np.any(step < 0) or np.any((step == 0) & (np.diff(time_us) < 0)):
            order = np.lexsort((time_us, video))
            for name in ("video", "time_us", "type", "value", "reach"):
                setattr(self, name, getattr(self, name)[:n][order])
        offsets = np.zeros(n_videos + 1, np.int64)
        np.cumsum(np.bincount(self.video[:n], minlength=n_videos), out=offsets[1:])
        kinds = type_map[self.type[:n]] if n else self.type[:0]
        return Rows(self.video[:n], self.time_us[:n], kinds, self.value[:n], self.reach[:n], offsets)


class _Dropped:
    """Counts of dropped rows by reason, and the first of each in words; ``start`` is the number of the batch's first row."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.start = 0

    def add(self, file: str, reason: str, rows: parquet_columns.Flags) -> None:
        """Count the flagged rows of a batch."""
        if n := int(rows.sum()):
            self.count(file, reason, n, f"row {self.start + int(rows.argmax())}")

    def count(self, file: str, reason: str, n: int, first: str) -> None:
        """Count ``n`` rows, of which the ``first`` is named."""
        name = f"{file}: {reason}"
        self.counts[name] += n
        self.first.setdefault(name, first)


@dataclass(frozen=True, slots=True)
class _Index:
    """How rows find their video: ``ids`` in the order of ``published_us`` (V,) int64; later rows are not seen."""

    ids: pa.Array
    published_us: NDArray[np.int64]
    before_us: int
    dropped: _Dropped

    def place(
        self, file: str, batch: pa.RecordBatch
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], parquet_columns.Flags]:
        """Video index (n,) and time (n,) of each row, and which rows can be used at all."""
        time = parquet_columns.times(batch.column("time"))
        lost = time.missing()
        seen = lost | (time.us <= self.before_us)
        video = parquet_columns.positions(batch.column("video_id"), self.ids)
        unknown = seen & (video < 0)
        no_time = seen & ~unknown & lost
        keep = seen & ~unknown & ~no_time
        early = np.zeros(len(keep), np.bool_)
        early[keep] = time.us[keep] < self.published_us[video[keep]]
        self.drop(file, "unknown video", unknown)
        self.drop(file, "no time", no_time & time.null)
        self.drop(file, f"time outside {parquet_columns.YEARS}", no_time & time.beyond)
        self.drop(file, "before publication", early)
        return video, time.us, keep & ~early

    def drop(self, file: str, reason: str, rows: parquet_columns.Flags) -> None:
        self.dropped.add(file, reason, rows)


def load_dataset(path: Path, *, before_us: int | None = None) -> DataSet:
    """Read a canonical data set.

    Args:
        path: the folder.
        before_us: as-of time, microseconds UTC: rows later than it and videos published later than it are left out.

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
    latest = _LATEST if before_us is None else before_us
    dropped = _Dropped()
    videos, published_us = _read_videos(tables[VIDEOS_FILE], latest, dropped)
    ids = pa.array([video.video_id for video in videos], pa.large_string())
    index = _Index(ids, published_us, latest, dropped)
    kinds: dict[str, int] = {}
    sinks: dict[str, _Sink] = {}
    if EVENTS_FILE in present:
        sinks[EVENTS_FILE] = _read_events(tables[EVENTS_FILE], index, kinds)
    if COUNTERS_FILE in present:
        sinks[COUNTERS_FILE] = _read_counters(tables[COUNTERS_FILE], index, kinds)
        if EVENTS_FILE in present:
            _leave_out_mixed(videos, sinks, list(kinds), dropped)
    seen = np.zeros(len(kinds), np.int64)
    for sink in sinks.values():
        seen += np.bincount(sink.type[: sink.n], minlength=len(kinds))
    used = {kind for kind, code in kinds.items() if seen[code]}
    types = (*(t for t in ENGAGEMENT_TYPES if t in used), *sorted(used - set(ENGAGEMENT_TYPES)))
    check_types(types)
    type_map = np.array([types.index(kind) if kind in used else -1 for kind in kinds], np.int16)
    events, counters = (
        sinks[name].rows(len(videos), type_map) if name in sinks else None for name in (EVENTS_FILE, COUNTERS_FILE)
    )
    return DataSet(videos, published_us, types, events, counters, dict(dropped.counts), dropped.first)


def load_and_report(path: Path, *, before_us: int | None = None) -> DataSet:
    """``load_dataset``, with what was left out printed to standard error."""
    data = load_dataset(path, before_us=before_us)
    for line in data.left_out():
        print(line, file=sys.stderr)
    return data


def _validated(path: Path) -> ParquetTable:
    """Open a file, or refuse it where it breaks the layout."""
    table = ParquetTable(path)
    for name, fault in table.faults():
        raise DataError(f"{name}: column {fault.column}: is {fault.found}; allowed: {fault.allowed}")
    return table


def _read_videos(table: ParquetTable, before_us: int, dropped: _Dropped) -> tuple[list[Video], NDArray[np.int64]]:
    parts: dict[str, list[pa.Array]] = {name: [] for name in table.names if name != "published_at"}
    times, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in table.batches():
        ids, published = (
            parquet_columns.text(batch.column("video_id")),
            parquet_columns.times(batch.column("published_at")),
        )
        empty, lost = parquet_columns.empty(ids), published.missing()
        seen = lost | (published.us <= before_us)
        dropped.add(VIDEOS_FILE, "no id", seen & empty)
        dropped.add(VIDEOS_FILE, "no time of publication", published.null & ~empty)
        dropped.add(VIDEOS_FILE, f"published outside {parquet_columns.YEARS}", published.beyond & ~empty)
        keep = np.flatnonzero(~empty & ~lost)
        times.append(published.us[keep])
        rows.append(dropped.start + keep)
        for name, arrays in parts.items():
            arrays.append(_content(name, batch.column(name)).take(pa.array(keep)))
        dropped.start += len(batch)
    dropped.start = 0
    if len(times) == 1:
        return [], times[0]
    ids, published_us = pa.concat_arrays(parts["video_id"]), np.concatenate(times)
    keep = _first_of_each(ids, published_us, before_us, np.concatenate(rows), dropped)
    by_id = np.empty(len(keep), np.int64)
    by_id[pc.sort_indices(ids.take(pa.array(keep))).to_numpy()] = np.arange(len(keep))
    keep = keep[np.lexsort((by_id, published_us[keep]))]
    chosen = pa.array(keep)
    fields = {name: pa.concat_arrays(arrays).take(chosen).to_pylist() for name, arrays in parts.items()}
    fields["published_us"] = published_us[keep].tolist()
    videos = [Video(**dict(zip(fields, cells, strict=True))) for cells in zip(*fields.values(), strict=True)]
    return videos, published_us[keep]


def _first_of_each(
    ids: pa.Array, published_us: NDArray[np.int64], before_us: int, rows: NDArray[np.int64], dropped: _Dropped
) -> NDArray[np.int64]:
    """Places of the videos that are seen; of several with one id the first stands."""
    codes = ids.dictionary_encode().indices.to_numpy()
    again = np.ones(len(codes), np.bool_)
    again[np.unique(codes, return_index=True)[1]] = False
    seen = published_us <= before_us
    if (again & seen).any():
        first = int((again & seen).argmax())
        named = f"row {rows[first]}, {ids[first].as_py()!r}"
        dropped.count(VIDEOS_FILE, "id is there already, the first row stands", int((again & seen).sum()), named)
    return np.flatnonzero(seen & ~again)


def _content(name: str, column: pa.Array) -> pa.Array:
    """A column of videos.parquet as it is kept: empty text and numbers that can be none are missing."""
    if name in NUMBER_FIELDS:
        return pa.array(parquet_columns.numbers(column).values, from_pandas=True)
    if name in TEXT_FIELDS:
        column = parquet_columns.texts(column)
        return pc.if_else(pc.equal(column, ""), None, column)
    return parquet_columns.text(column)


def _read_events(table: ParquetTable, index: _Index, kinds: dict[str, int]) -> _Sink:
    sink = _Sink(table.rows)
    for batch in table.batches():
        video, time_us, keep = index.place(EVENTS_FILE, batch)
        type_ids, typed = _type_codes(batch.column("type"), kinds)
        index.drop(EVENTS_FILE, "no type", keep & ~typed)
        keep &= typed
        value = np.ones(len(keep), np.int64)
        if "count" in batch.schema.names:
            count = parquet_columns.counts(batch.column("count"))
            value, missing = count.values, count.null | count.nan
            wrong = {
                "no count": missing,
                "count negative": count.negative,
                "count fractional": count.fractional,
                "count too large": count.too_large,
                "count 0": ~missing & ~count.invalid() & (value == 0),
            }
            for reason, rows in wrong.items():
                index.drop(EVENTS_FILE, reason, keep & rows)
                keep &= ~rows
        reach = np.zeros(len(keep), np.int64)
        if "reach" in batch.schema.names:
            reach = parquet_columns.counts(batch.column("reach")).values
        sink.add(keep, video=video, time_us=time_us, type=type_ids, value=value, reach=reach)
        index.dropped.start += len(batch)
    index.dropped.start = 0
    return sink


def _type_codes(array: pa.Array, kinds: dict[str, int]) -> tuple[NDArray[np.int64], parquet_columns.Flags]:
    """Code of each row's type in ``kinds``, which grows by new ones, and whether the row has a type."""
    encoded = parquet_columns.text(array).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = np.array([kinds.setdefault(name, len(kinds)) if name else -1 for name in names] + [-1], np.int64)
    if len(kinds) > MAX_TYPES:
        raise DataError(
            f"{EVENTS_FILE}: column type: has more than {MAX_TYPES} different values, such as {names[-1]!r}"
        )
    found = codes[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return found, found >= 0


def _read_counters(table: ParquetTable, index: _Index, kinds: dict[str, int]) -> _Sink:
    names = [name for name in COUNTER_COLUMNS if name in table.names]
    codes = np.array([kinds.setdefault(COUNTER_COLUMNS[name], len(kinds)) for name in names], np.int64)
    sink = _Sink(table.rows * len(names))
    for batch in table.batches():
        video, time_us, keep = index.place(COUNTERS_FILE, batch)
        value = np.empty((len(keep), len(names)), np.int64)
        usable = np.empty((len(keep), len(names)), np.bool_)
        for column, name in enumerate(names):
            count = parquet_columns.counts(batch.column(name))
            for reason in ("negative", "fractional", "too_large"):
                index.drop(COUNTERS_FILE, f"{name} {reason.replace('_', ' ')}", keep & getattr(count, reason))
            value[:, column] = count.values
            usable[:, column] = keep & ~count.null & ~count.nan & ~count.invalid()
        sink.add(
            usable.ravel(),
            video=np.repeat(video, len(names)),
            time_us=np.repeat(time_us, len(names)),
            type=np.tile(codes, len(keep)),
            value=value.ravel(),
            reach=np.zeros(usable.size, np.int64),
        )
        index.dropped.start += len(batch)
    index.dropped.start = 0
    return sink


def _leave_out_mixed(videos: list[Video], sinks: dict[str, _Sink], kinds: list[str], dropped: _Dropped) -> None:
    """Where one type of one video has events and counters, the counters stand: they carry what the events told."""
    events = sinks[EVENTS_FILE]
    pairs = events.pairs(len(kinds))
    mixed = np.isin(pairs, np.unique(sinks[COUNTERS_FILE].pairs(len(kinds))))
    if mixed.any():
        video, kind = divmod(int(pairs[mixed].min()), len(kinds))
        named = f"of video {videos[video].video_id!r}, type {kinds[kind]!r}"
        dropped.count(
            EVENTS_FILE, f"the type has {COUNTERS_FILE} of the video too, which stand", int(mixed.sum()), named
        )
        events.keep(~mixed)
