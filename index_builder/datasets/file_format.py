"""The canonical data set format: its files, their columns and the columns' types.

    videos.parquet    one row per video:                            video_id, published_at, optional metadata
    events.parquet    one row per engagement:                       video_id, time, type, optional count and reach
    counters.parquet  one row per reading of cumulative counters:   video_id, time, one column per type

A data set has events, counters or both. Each file may also be a folder of part files. Columns that are not declared are
ignored.

The columns are declared only here. The loader, the check, the export and the simulator use this declaration. The
metadata columns are derived from the fields of ``Video``. The counter columns are derived from ``COUNTER_COLUMNS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from model.engagement.types import COUNTER_COLUMNS
from model.engagement.video import METADATA

VIDEOS_FILE: Final = "videos.parquet"
EVENTS_FILE: Final = "events.parquet"
COUNTERS_FILE: Final = "counters.parquet"

TEXT_FIELDS: Final = tuple(declared.name for declared in METADATA if declared.kind == "text")
NUMBER_FIELDS: Final = tuple(declared.name for declared in METADATA if declared.kind == "number")
COLUMN_OF_TYPE: Final = {event_type: column for column, event_type in COUNTER_COLUMNS.items()}
"""Maps an engagement type to its counter column."""

MAX_TYPES: Final = 256
"""Maximum number of engagement types in one data set. If a column contains more values, it is not a column of types."""

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
"""Arrow type of the time columns that this project writes."""
ID, TIME, NUMBER = "string", "timestamp", "integer or floating point"
TEXT: Final = "string, integer or list of strings"


@dataclass(frozen=True, slots=True)
class Column:
    """Describes a column.

    ``allowed``: the contents that the column may have, in words.
    ``written``: the Arrow type that this project writes.
    ``required``: True if the file must contain the column.
    """

    allowed: str
    written: pa.DataType
    required: bool = False


_VIDEO_ID: Final = Column(ID, pa.string(), required=True)
_TIME: Final = Column(TIME, TIMESTAMP, required=True)
_COUNT: Final = Column(NUMBER, pa.int64())

LAYOUT: Final[Mapping[str, Mapping[str, Column]]] = {
    VIDEOS_FILE: {
        "video_id": _VIDEO_ID,
        "published_at": _TIME,
        **dict.fromkeys(TEXT_FIELDS, Column(TEXT, pa.string())),
        **dict.fromkeys(NUMBER_FIELDS, Column(NUMBER, pa.float64())),
    },
    EVENTS_FILE: {
        "video_id": _VIDEO_ID,
        "time": _TIME,
        "type": Column(ID, pa.string(), required=True),
        "count": _COUNT,
        "reach": _COUNT,
    },
    COUNTERS_FILE: {"video_id": _VIDEO_ID, "time": _TIME, **dict.fromkeys(COUNTER_COLUMNS, _COUNT)},
}


def written_schema(file: str) -> pa.Schema:
    """Return the Arrow schema that this project writes for ``file``, with all columns."""
    return pa.schema([(name, column.written) for name, column in LAYOUT[file].items()])


def table_of(file: str, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Build a table for ``file`` from some of its columns.

    Raises:
        ValueError: the format has no such column, or a required column is missing.
    """
    required = {name for name, column in LAYOUT[file].items() if column.required}
    if not required <= columns.keys() <= LAYOUT[file].keys():
        raise ValueError(f"{file}: has the columns {', '.join(columns)}; allowed: {', '.join(LAYOUT[file])}")
    return pa.table(dict(columns))
