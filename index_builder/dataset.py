"""A canonical data set in memory: videos, and their rows as flat sorted arrays.

Files stream by in batches, straight into arrays sized by the files' row counts, so that the set is never in memory
twice. With an as-of time, what is later never enters: neither rows nor videos, and not the counts of dropped rows.

A row that cannot be used is dropped and counted by reason in ``DataSet.dropped``; a file that cannot be
used raises DataError. ``index_builder.check`` tells the whole of what is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder import columns
from index_builder.layout import COUNTERS, EVENTS, LAYOUT, MAX_TYPES, NUMBER_FIELDS, TEXT_FIELDS, VIDEOS, faults
from model.bins import HOUR_US
from model.errors import DataError
from model.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES, check_types
from model.video import Video

SILENCE_US: Final = HOUR_US
"""So long after its newest row a data set is taken to have been watched still."""
_LATEST: Final = np.iinfo(np.int64).max
_CHECK: Final = "m3tr-build check lists every such row"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of every video, sorted by (video, time), rows of one time in the order of the file.

    ``video`` (n,) int32 index into ``DataSet.videos``; ``time_us`` (n,) int64; ``type`` (n,) int16 index into
    ``DataSet.types``; ``value`` (n,) int64, a count >= 1 for events and a running total >= 0 for counters; ``reach``
    (n,) int64 summed audience, 0 where unknown; ``offsets`` (V + 1,) int64: rows of video v are
    ``offsets[v]:offsets[v + 1]``.
    """

    video: NDArray[np.int32]
    time_us: NDArray[np.int64]
    type: NDArray[np.int16]
    value: NDArray[np.int64]
    reach: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as known at one time.

    ``videos`` sorted by (published_us, video_id); ``published_us`` (V,) int64; ``types`` the observed engagement types,
    singular, known ones first; ``events`` and ``counters`` are None where the set has no such file;
    ``dropped`` maps "file: reason" to a number of rows.
    """

    videos: list[Video]
    published_us: NDArray[np.int64]
    types: tuple[str, ...]
    events: Rows | None
    counters: Rows | None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def last_us(self) -> int | None:
        """Time of the newest row or publication, microseconds; None for a set without videos."""
        ends = [int(rows.time_us.max()) for rows in (self.events, self.counters) if rows is not None and len(rows)]
        ends += [int(self.published_us[-1])] if len(self.videos) else []
        return max(ends, default=None)

    def watched_until_us(self, as_of_us: int) -> int:
        """Until when silence means that nothing happened: ``as_of_us``, but at most SILENCE_US after the newest row."""
        last = self.last_us()
        return as_of_us if last is None else min(as_of_us, last + SILENCE_US)


class _Sink:
    """Arrays of one file's usable rows, filled from the front."""

    def __init__(self, capacity: int) -> None:
        self.video = np.empty(capacity, np.int32)
        self.time_us = np.empty(capacity, np.int64)
        self.type = np.empty(capacity, np.int16)
        self.value = np.empty(capacity, np.int64)
        self.reach = np.empty(capacity, np.int64)
        self.n = 0

    def add(self, keep: columns.Flags, **arrays: NDArray[np.int64]) -> None:
        end = self.n + int(keep.sum())
        for name, array in arrays.items():
            getattr(self, name)[self.n : end] = array[keep]
        self.n = end

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


@dataclass(frozen=True, slots=True)
class _Index:
    """How rows find their video: ``ids`` in the order of ``published_us`` (V,) int64; later rows are not seen."""

    ids: pa.Array
    published_us: NDArray[np.int64]
    before_us: int
    dropped: Counter[str]

    def place(self, file: str, batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], columns.Flags]:
        """Video index (n,) and time (n,) of each row, and which rows can be used at all."""
        time = _times(file, "time", batch.column("time"))
        seen = time.null | (time.us <= self.before_us)
        video = columns.positions(batch.column("video_id"), self.ids)
        unknown = seen & (video < 0)
        no_time = seen & ~unknown & time.null
        keep = seen & ~unknown & ~no_time
        early = np.zeros(len(keep), np.bool_)
        early[keep] = time.us[keep] < self.published_us[video[keep]]
        self.drop(file, "unknown video", unknown)
        self.drop(file, "no time", no_time)
        self.drop(file, "before publication", early)
        return video, time.us, keep & ~early

    def drop(self, file: str, reason: str, rows: columns.Flags) -> None:
        if n := int(rows.sum()):
            self.dropped[f"{file}: {reason}"] += n


def load_dataset(path: Path, *, before_us: int | None = None) -> DataSet:
    """Read a canonical data set.

    Args:
        path: the folder.
        before_us: as-of time, microseconds UTC: rows later than it and videos published later than it are left out.

    Raises:
        DataError: a file or column is missing or wrong, a video has two rows or lacks its id or publication, or one
            type of one video has both events and counters.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such data set folder")
    present = [name for name in (EVENTS, COUNTERS) if (path / name).exists()]
    if not present:
        raise DataError(f"{path}: has neither {EVENTS} nor {COUNTERS}; at least one is required")
    capacity = {name: _validate(path / name) for name in (VIDEOS, *present)}
    latest = _LATEST if before_us is None else before_us
    videos, published_us = _read_videos(path / VIDEOS, latest)
    ids = pa.array([video.video_id for video in videos], pa.large_string())
    index = _Index(ids, published_us, latest, Counter())
    kinds: dict[str, int] = {}
    sinks: dict[str, _Sink] = {}
    if EVENTS in present:
        sinks[EVENTS] = _read_events(path / EVENTS, index, kinds, capacity[EVENTS])
    if COUNTERS in present:
        sinks[COUNTERS] = _read_counters(path / COUNTERS, index, kinds, capacity[COUNTERS])
    seen = np.zeros(len(kinds), np.int64)
    for sink in sinks.values():
        seen += np.bincount(sink.type[: sink.n], minlength=len(kinds))
    used = {kind for kind, code in kinds.items() if seen[code]}
    types = (*(t for t in ENGAGEMENT_TYPES if t in used), *sorted(used - set(ENGAGEMENT_TYPES)))
    check_types(types)
    type_map = np.array([types.index(kind) if kind in used else -1 for kind in kinds], np.int16)
    events, counters = (
        sinks[name].rows(len(videos), type_map) if name in sinks else None for name in (EVENTS, COUNTERS)
    )
    data = DataSet(videos, published_us, types, events, counters, dict(index.dropped))
    _refuse_mixed(data)
    return data


def _validate(path: Path) -> int:
    """Refuse a file that breaks the layout; return its number of rows."""
    with columns.open_parquet(path) as file:
        for fault in faults(path.name, file.schema_arrow):
            raise DataError(f"{path.name}: column {fault.column}: is {fault.found}; allowed: {fault.allowed}")
        return int(file.metadata.num_rows)


def _times(file: str, column: str, array: pa.Array) -> columns.Times:
    try:
        return columns.times(array)
    except DataError as error:
        raise DataError(f"{file}: column {column}: {error}") from None


def _read_videos(path: Path, before_us: int) -> tuple[list[Video], NDArray[np.int64]]:
    table = pa.Table.from_batches(list(columns.batches(path, LAYOUT[VIDEOS]))) if _has_rows(path) else None
    if table is None:
        return [], np.zeros(0, np.int64)
    table = table.combine_chunks()
    ids = columns.text(_flat(table, "video_id"))
    published = _times(VIDEOS, "published_at", _flat(table, "published_at"))
    empty = pc.or_kleene(pc.is_null(ids), pc.equal(ids, "")).fill_null(True).to_numpy(zero_copy_only=False)
    for column, wrong in (("video_id", empty), ("published_at", published.null)):
        if wrong.any():
            raise DataError(
                f"{VIDEOS}: column {column}: is empty in row {int(wrong.argmax())}; every video needs one ({_CHECK})"
            )
    frequent = pc.value_counts(ids)
    twice = frequent.filter(pc.greater(frequent.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{VIDEOS}: column video_id: {twice.field('values')[0].as_py()!r} is there "
            f"{twice.field('counts')[0].as_py()} times; every video has one row ({_CHECK})"
        )
    keep = np.flatnonzero(published.us <= before_us)
    names = ids.take(pa.array(keep))
    by_id = np.empty(len(keep), np.int64)
    by_id[pc.sort_indices(names).to_numpy()] = np.arange(len(keep))
    keep = keep[np.lexsort((by_id, published.us[keep]))]
    chosen, rows = pa.array(keep), published.us[keep]
    fields: dict[str, list[object]] = {"video_id": ids.take(chosen).to_pylist(), "published_us": rows.tolist()}
    for name in TEXT_FIELDS:
        if name in table.column_names:
            fields[name] = _texts(_flat(table, name).take(chosen))
    for name in NUMBER_FIELDS:
        if name in table.column_names:
            fields[name] = _numbers(_flat(table, name).take(chosen))
    names_of = list(fields)
    videos = [Video(**dict(zip(names_of, cells, strict=True))) for cells in zip(*fields.values(), strict=True)]
    return videos, rows


def _has_rows(path: Path) -> bool:
    with columns.open_parquet(path) as file:
        return bool(file.metadata.num_rows)


def _flat(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _texts(array: pa.Array) -> list[object]:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = pc.binary_join(array.cast(pa.list_(pa.string())), ",")
    array = columns.text(array)
    return pc.if_else(pc.equal(array, ""), None, array).to_pylist()  # type: ignore[no-any-return]


def _numbers(array: pa.Array) -> list[object]:
    real = array.cast(pa.float64())
    usable = pc.and_(pc.is_finite(real), pc.greater_equal(real, 0.0))
    return pc.if_else(usable, real, None).to_pylist()  # type: ignore[no-any-return]


def _read_events(path: Path, index: _Index, kinds: dict[str, int], capacity: int) -> _Sink:
    sink = _Sink(capacity)
    for batch in columns.batches(path, LAYOUT[EVENTS]):
        video, time_us, keep = index.place(EVENTS, batch)
        type_ids, typed = _type_codes(batch.column("type"), kinds)
        index.drop(EVENTS, "no type", keep & ~typed)
        keep &= typed
        value = np.ones(len(keep), np.int64)
        if "count" in batch.schema.names:
            count = columns.counts(batch.column("count"))
            value, missing = count.values, count.null | count.nan
            wrong = {
                "no count": missing,
                "count negative": count.negative,
                "count fractional": count.fractional,
                "count too large": count.too_large,
                "count 0": ~missing & ~count.invalid() & (value == 0),
            }
            for reason, rows in wrong.items():
                index.drop(EVENTS, reason, keep & rows)
                keep &= ~rows
        reach = np.zeros(len(keep), np.int64)
        if "reach" in batch.schema.names:
            reach = columns.counts(batch.column("reach")).values
        sink.add(keep, video=video, time_us=time_us, type=type_ids, value=value, reach=reach)
    return sink


def _type_codes(array: pa.Array, kinds: dict[str, int]) -> tuple[NDArray[np.int64], columns.Flags]:
    """Code of each row's type in ``kinds``, which grows by new ones, and whether the row has a type."""
    encoded = columns.text(array).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = np.array([kinds.setdefault(name, len(kinds)) if name else -1 for name in names] + [-1], np.int64)
    if len(kinds) > MAX_TYPES:
        raise DataError(f"{EVENTS}: column type: has more than {MAX_TYPES} different values, such as {names[-1]!r}")
    found = codes[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return found, found >= 0


def _read_counters(path: Path, index: _Index, kinds: dict[str, int], capacity: int) -> _Sink:
    with columns.open_parquet(path) as file:
        names = [name for name in COUNTER_COLUMNS if name in file.schema_arrow.names]
    codes = np.array([kinds.setdefault(COUNTER_COLUMNS[name], len(kinds)) for name in names], np.int64)
    sink = _Sink(capacity * len(names))
    for batch in columns.batches(path, LAYOUT[COUNTERS]):
        video, time_us, keep = index.place(COUNTERS, batch)
        value = np.empty((len(keep), len(names)), np.int64)
        usable = np.empty((len(keep), len(names)), np.bool_)
        for column, name in enumerate(names):
            count = columns.counts(batch.column(name))
            for reason in ("negative", "fractional", "too_large"):
                index.drop(COUNTERS, f"{name} {reason.replace('_', ' ')}", keep & getattr(count, reason))
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
    return sink


def _refuse_mixed(data: DataSet) -> None:
    if data.events is None or data.counters is None:
        return
    n_types = len(data.types)
    both = np.intersect1d(_pairs(data.events, n_types), _pairs(data.counters, n_types), assume_unique=True)
    if len(both):
        video, kind = divmod(int(both[0]), n_types)
        raise DataError(
            f"{COUNTERS}: video_id {data.videos[video].video_id!r}: type {data.types[kind]!r} is in {EVENTS} too "
            f"({len(both)} such pairs); one type of one video has either events or counters"
        )


def _pairs(rows: Rows, n_types: int) -> NDArray[np.int64]:
    """Every (video, type) that has rows, as one sorted number each."""
    return np.unique(rows.video.astype(np.int64) * n_types + rows.type)
