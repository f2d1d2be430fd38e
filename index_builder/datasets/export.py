"""`m3tr-build export`: what a service has collected, as a data set to train on.

The store keeps how much fell into each bin of a video's age, not when in the bin. A bin becomes one row, at its last instant (at
the time of the newest row in the bin of that one): by then all of it was known, and it falls into the same bin again.

The store's layout is the service's own affair, so a process of it reads the store and tells us in lines of JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, NUMBER_FIELDS, TEXT_FIELDS, VIDEOS_FILE
from index_builder.progress import progress
from model.engagement.history import History, Mode, Series
from model.engagement.rows import bin_times_us, flat_cells
from model.engagement.types import COUNTER_COLUMNS
from model.engagement.video import Video
from model.errors import DataError

_ROWS: Final = 1 << 16
"""Rows held in memory of each file."""
_TIME: Final = pa.timestamp("us", tz="UTC")
SCHEMAS: Final = {
    VIDEOS_FILE: pa.schema(
        [("video_id", pa.string()), ("published_at", _TIME)]
        + [(name, pa.string()) for name in TEXT_FIELDS]
        + [(name, pa.float64()) for name in NUMBER_FIELDS]
    ),
    EVENTS_FILE: pa.schema(
        [
            ("video_id", pa.string()),
            ("time", _TIME),
            ("type", pa.string()),
            ("count", pa.int64()),
            ("reach", pa.int64()),
        ]
    ),
    COUNTERS_FILE: pa.schema([("video_id", pa.string()), ("time", _TIME), *((c, pa.int64()) for c in COUNTER_COLUMNS)]),
}


class _Series(msgspec.Struct):
    mode: Mode
    bins: list[int]
    values: list[int]


class _Damaged(msgspec.Struct):
    video_id: str
    why: str


class _Record(msgspec.Struct):
    video: dict[str, Any]
    newest_us: int | None
    series: dict[str, _Series]
    reach: list[tuple[int, int]]


@dataclass(slots=True)
class Exported:
    """What was written: rows by file; ``left_out`` maps a counted type that has no column to its number of cells.

    ``damaged`` maps a video whose stored record cannot be read, and which was left out, to the reason.
    """

    rows: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


def export_store(out: Path, *, redis_url: str | None = None, data_dir: Path | None = None) -> Exported:
    """Write the store at ``redis_url``, or the embedded one in ``data_dir``, into the folder ``out``.

    Raises:
        DataError: the store cannot be read or is empty, or ``out`` holds a data set.
    """
    if there := [name for name in SCHEMAS if (out / name).exists()]:
        raise DataError(f"{out}: holds {', '.join(there)} already; choose another folder or remove them")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as part, _reading(redis_url, data_dir) as lines:
        total = int(msgspec.json.decode(next(lines))["videos"])
        sink = _Sink(Path(part))
        with progress("export", total) as bar:
            for record in _records(lines):
                if isinstance(record, _Damaged):
                    sink.exported.damaged[record.video_id] = record.why
                else:
                    sink.add(record)
                bar.advance()
        if not total:
            raise DataError("the store has no registered video")
        sink.close()
        for name in sink.exported.rows:
            (Path(part) / name).rename(out / name)
    return sink.exported


class _Sink:
    """The files of a data set, each begun with its first row (events in any case: one of the two must be there)."""

    def __init__(self, folder: Path) -> None:
        self.exported = Exported()
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in SCHEMAS}
        self._held = dict.fromkeys(SCHEMAS, 0)

    def add(self, record: _Record) -> None:
        video = Video(**record.video)
        self._write(VIDEOS_FILE, {name: [value] for name, value in _columns(video).items()})
        history = History(
            {
                kind: Series(series.mode, np.array(series.bins, np.int64), np.array(series.values, np.int64))
                for kind, series in record.series.items()
            },
            dict(record.reach),
        )
        newest_us = video.published_us if record.newest_us is None else record.newest_us
        self._add_events(video, history, newest_us)
        self._add_counters(video, history, newest_us)

    def close(self) -> None:
        if not self.exported.rows.get(EVENTS_FILE) and not self.exported.rows.get(COUNTERS_FILE):
            self._write(EVENTS_FILE, {"video_id": [], "time": [], "type": [], "count": [], "reach": []})
        for name in self.exported.rows:
            self._flush(name)
        for writer in self._writers.values():
            writer.close()

    def _add_events(self, video: Video, history: History, newest_us: int) -> None:
        types = sorted(history.series)
        bins, kinds, values, reach = flat_cells(history, "events", types)
        if len(bins):
            self._write(
                EVENTS_FILE,
                {
                    "video_id": [video.video_id] * len(bins),
                    "time": bin_times_us(bins, video.published_us, newest_us),
                    "type": pa.array(types, pa.string()).take(pa.array(kinds)),
                    "count": values,
                    "reach": reach,
                },
            )

    def _add_counters(self, video: Video, history: History, newest_us: int) -> None:
        columns = {kind: column for column, kind in COUNTER_COLUMNS.items()}
        counted = {kind: series for kind, series in history.series.items() if series.mode == "counters"}
        for kind in counted.keys() - columns.keys():
            self.exported.left_out[kind] = self.exported.left_out.get(kind, 0) + len(counted[kind].bins)
        known = {kind: series for kind, series in counted.items() if kind in columns}
        if not known:
            return
        bins = np.unique(np.concatenate([series.bins for series in known.values()]))
        rows: dict[str, Any] = {
            "video_id": [video.video_id] * len(bins),
            "time": bin_times_us(bins, video.published_us, newest_us),
        }
        for column, kind in COUNTER_COLUMNS.items():
            values, missing = np.zeros(len(bins), np.int64), np.ones(len(bins), np.bool_)
            if kind in known:
                at = np.searchsorted(bins, known[kind].bins)
                values[at], missing[at] = known[kind].values, False
            rows[column] = pa.array(values, mask=missing)
        if len(bins):
            self._write(COUNTERS_FILE, rows)

    def _write(self, name: str, rows: dict[str, Any]) -> None:
        table = pa.table(
            {key: pa.array(rows[key]).cast(kind.type) for key in rows for kind in [SCHEMAS[name].field(key)]},
            schema=SCHEMAS[name],
        )
        self._tables[name].append(table)
        self._held[name] += len(table)
        self.exported.rows[name] = self.exported.rows.get(name, 0) + len(table)
        if self._held[name] >= _ROWS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if name not in self._writers:
            self._writers[name] = pq.ParquetWriter(self._folder / name, SCHEMAS[name], compression="zstd")
        if self._tables[name]:
            self._writers[name].write_table(pa.concat_tables(self._tables[name]))
        self._tables[name], self._held[name] = [], 0


def _columns(video: Video) -> dict[str, Any]:
    fields = {name: getattr(video, name) for name in (*TEXT_FIELDS, *NUMBER_FIELDS)}
    return {"video_id": video.video_id, "published_at": video.published_us, **fields}


def _records(lines: Iterator[bytes]) -> Iterator[_Record | _Damaged]:
    decoder, damaged = msgspec.json.Decoder(_Record), msgspec.json.Decoder(_Damaged)
    for written, line in enumerate(lines):
        if line.startswith(b'{"end":'):
            if msgspec.json.decode(line)["end"] == written:
                return
            break
        yield damaged.decode(line) if line.startswith(b'{"video_id":') else decoder.decode(line)
    raise DataError("the store was not read to its end")


@contextmanager
def _reading(redis_url: str | None, data_dir: Path | None) -> Iterator[Iterator[bytes]]:
    """The lines that a process of the service writes about its store."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3TR_")}
    command = [sys.executable, "-m", "service.dump"]
    if redis_url is None:
        command += ["--data-dir", str(data_dir)]
    else:
        # Not on the command line, where every user of the machine can read it.
        environment["REDIS_URL"] = redis_url
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert process.stdout is not None
        try:
            yield _checked(process.stdout, process, errors)
        finally:
            process.stdout.close()
            process.wait()


def _checked(out: IO[bytes], process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[bytes]:
    yield from out
    if process.wait():
        errors.seek(0)
        told = errors.read().decode("utf-8", "replace").strip().splitlines()
        raise DataError(f"the event store cannot be read: {told[-1] if told else f'status {process.returncode}'}")
