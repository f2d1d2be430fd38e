"""The canonical data set format: which files, which columns, of which types.

    videos.parquet    one row a video:                             video_id, published_at, and optional content
    events.parquet    one row an engagement:                       video_id, time, type, optional count and reach
    counters.parquet  one row an observation of running totals:    video_id, time, and one column a type

A set has events, counters or both. Further columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from index_builder.columns import is_number, is_text
from model.types import COUNTER_COLUMNS

VIDEOS: Final = "videos.parquet"
EVENTS: Final = "events.parquet"
COUNTERS: Final = "counters.parquet"

TEXT_FIELDS: Final = ("title", "description", "tags", "category", "language", "creator_id", "creator_name")
NUMBER_FIELDS: Final = ("duration_s", "creator_followers")

MAX_TYPES: Final = 256
"""Engagement types of one set; more means that the column holds something else."""

_STRING, _TIME, _NUMBER = "string", "timestamp", "integer or floating point"
_TEXT = "string, integer or list of strings"


@dataclass(frozen=True, slots=True)
class Column:
    """What a column may hold; ``allowed`` in words."""

    allowed: str
    required: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """A column that is missing or of a wrong type; ``found`` is the type in words, or "missing"."""

    column: str
    found: str
    allowed: str


LAYOUT: Final[Mapping[str, Mapping[str, Column]]] = {
    VIDEOS: {
        "video_id": Column(_STRING, True),
        "published_at": Column(_TIME, True),
        **{name: Column(_TEXT, False) for name in TEXT_FIELDS},
        **{name: Column(_NUMBER, False) for name in NUMBER_FIELDS},
    },
    EVENTS: {
        "video_id": Column(_STRING, True),
        "time": Column(_TIME, True),
        "type": Column(_STRING, True),
        "count": Column(_NUMBER, False),
        "reach": Column(_NUMBER, False),
    },
    COUNTERS: {
        "video_id": Column(_STRING, True),
        "time": Column(_TIME, True),
        **{name: Column(_NUMBER, False) for name in COUNTER_COLUMNS},
    },
}


def faults(file: str, schema: pa.Schema) -> Iterator[Fault]:
    """Every column of ``schema`` that breaks the layout of ``file``."""
    columns = LAYOUT[file]
    for name, column in columns.items():
        if name not in schema.names:
            if column.required:
                yield Fault(name, "missing", column.allowed)
        elif schema.names.count(name) > 1:
            yield Fault(name, "there more than once", "one column of each name")
        elif not _fits(schema.field(name).type, column.allowed):
            yield Fault(name, str(schema.field(name).type), column.allowed)
    if file == COUNTERS and not set(COUNTER_COLUMNS) & set(schema.names):
        names = ", ".join(COUNTER_COLUMNS)
        yield Fault(names, "missing", f"at least one of {names}")


def _fits(kind: pa.DataType, allowed: str) -> bool:
    if allowed == _TIME:
        return bool(pa.types.is_timestamp(kind))
    if allowed == _NUMBER:
        return is_number(kind)
    if allowed == _STRING:
        return is_text(kind)
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if listed:
        return is_text(kind.value_type)
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
