"""Reports what is wrong with a data set, by file, column and row (command ``m3tr-build check``).

The check changes nothing, and keeps a few numbers per row in memory. ``index_builder.datasets.findings`` explains the
severities.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index_builder.datasets import parquet_columns
from index_builder.datasets.check_rows import check_counters, check_events
from index_builder.datasets.check_videos import check_videos
from index_builder.datasets.column_matching import similar_column
from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, LAYOUT, VIDEOS_FILE
from index_builder.datasets.findings import Finding, Findings
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.types import check_types
from model.errors import DataError


def check_dataset(path: Path, *, now_us: int | None = None) -> list[Finding]:
    """Return all findings, errors first.

    A row later than ``now_us`` is reported as being in the future. The default of ``now_us`` is the current time.
    """
    path = Path(path)
    log = Findings(time.time_ns() // 1000 if now_us is None else now_us)
    if not path.is_dir():
        log.note("error", str(path), "", "no such folder")
        return log.sorted()
    present = [name for name in LAYOUT if (path / name).exists()]
    if VIDEOS_FILE not in present:
        log.note("error", VIDEOS_FILE, "", "the file is missing")
    if EVENTS_FILE not in present and COUNTERS_FILE not in present:
        log.note("error", EVENTS_FILE, "", f"neither this file nor {COUNTERS_FILE} exists; at least one is required")
    tables = {name: table for name in present if (table := _open(path / name, log))}
    videos, types, event_pairs = None, dict[str, int](), None
    with _note_damage(VIDEOS_FILE, log):
        videos = check_videos(tables[VIDEOS_FILE], log) if VIDEOS_FILE in tables else None
    with _note_damage(EVENTS_FILE, log):
        event_pairs = check_events(tables[EVENTS_FILE], videos, types, log) if EVENTS_FILE in tables else None
    with _note_damage(COUNTERS_FILE, log):
        if COUNTERS_FILE in tables:
            check_counters(tables[COUNTERS_FILE], videos, types, event_pairs, log)
    try:
        check_types(types)
    except DataError as error:
        log.note("error", EVENTS_FILE, "type", str(error).removeprefix("type: "))
    return log.sorted()


@contextmanager
def _note_damage(file: str, log: Findings) -> Iterator[None]:
    """Add an error finding if the ``with`` block cannot read ``file`` to its end."""
    try:
        yield
    except DataError as error:
        log.note("error", file, "", str(error))


def _open(path: Path, log: Findings) -> ParquetTable | None:
    """Open a table and add findings about its columns. Return the table, or None if its rows cannot be read."""
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
        log.note("warning", path.name, "", f"{name} in the folder is not a Parquet file; left out")
    _note_names(path.name, table, log)
    for column in ("published_at", "time"):
        dtypes = [
            part.schema.field(part.match.names[column]).type for part in table.parts if column in part.match.names
        ]
        if any(map(parquet_columns.is_naive, dtypes)):
            log.note("warning", path.name, column, "has no time zone; it is read as UTC")
    return None if broken else table


def _note_names(file: str, table: ParquetTable, log: Findings) -> None:
    """Add findings about renamed columns and about columns that are not read.

    Each column is reported once, even if it occurs in several part files.
    """
    renamed = {names: part.name for part in reversed(table.parts) for names in part.match.names.items()}
    for (column, found), name in renamed.items():
        if found != column:
            log.note("info", name, column, f"has the name {found!r} in this file")
    present = {column: column for column in table.names}
    unknown = dict.fromkeys(column for part in table.parts for column in part.match.unknown)
    misspelt = {column: similar for column in unknown if (similar := similar_column(file, column, present))}
    for column, similar in misspelt.items():
        log.note("warning", file, column, f"this is not a column of the format; did you mean {similar}?")
    # The checks of the videos and counters report each further column of their files.
    if rest := [column for column in unknown if column not in misspelt and file == EVENTS_FILE]:
        more = ", ..." if len(rest) > 20 else ""
        log.note("info", file, "", f"columns that are not read: {', '.join(rest[:20])}{more}")
