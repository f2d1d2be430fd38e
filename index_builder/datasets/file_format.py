"""The canonical data set format: which files, which columns, of which types.

    videos.parquet    one row a video:                             video_id, published_at, and optional content
    events.parquet    one row an engagement:                       video_id, time, type, optional count and reach
    counters.parquet  one row an observation of running totals:    video_id, time, and one column a type

A set has events, counters or both. Each may be a folder of part files. Case and blanks around a column's name make no
difference. Further columns are ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from index_builder.datasets.parquet_columns import is_list, is_number, is_text, is_time, stored
from model.engagement.types import COUNTER_COLUMNS
from model.engagement.video import METADATA

VIDEOS: Final = "videos.parquet"
EVENTS: Final = "events.parquet"
COUNTERS: Final = "counters.parquet"

TEXT_FIELDS: Final = tuple(declared.name for declared in METADATA if declared.kind == "text")
NUMBER_FIELDS: Final = tuple(declared.name for declared in METADATA if declared.kind == "number")

MAX_TYPES: Final = 256
"""Engagement types of one set; more means that the column holds something else."""

_STRING, _TIME, _NUMBER = "string", "timestamp", "integer or floating point"
_TEXT = "string, integer or list of strings"
_ALIKE: Final = 0.8
"""Likeness (difflib's ratio) from which an unknown column is taken to be a known one, mistyped."""
_LEAST_LETTERS: Final = 4
"""Of an unknown name that is a part of a known one, such as followers of creator_followers."""
_SEPARATORS: Final = re.compile(r"[-\s.]+")
_UNSEEN: Final = "\ufeff"
"""A byte order mark, which a CSV file leaves at the first column's name."""


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


@dataclass(frozen=True, slots=True)
class Match:
    """Which columns of a file are meant by those of the layout.

    ``names`` maps a column of the layout to the file's name of it; ``twice`` are those with several; ``unknown`` are the
    file's further columns.
    """

    names: Mapping[str, str]
    twice: tuple[str, ...]
    unknown: tuple[str, ...]


def match(file: str, names: list[str]) -> Match:
    """Find the layout's columns of ``file`` among ``names``; a name that is exactly right comes first."""
    found: dict[str, list[str]] = {}
    unknown = []
    for name in names:
        known = _plain(name)
        if known in LAYOUT[file] and not (name != known and known in names):
            found.setdefault(known, []).append(name)
        else:
            unknown.append(name)
    twice = tuple(known for known, same in found.items() if len(same) > 1)
    return Match({known: same[0] for known, same in found.items()}, twice, tuple(unknown))


def _plain(name: str) -> str:
    return name.strip().strip(_UNSEEN).strip().casefold()


def meant(file: str, name: str, there: Mapping[str, str]) -> str | None:
    """The column of the layout that an unknown ``name`` looks like, if that one is not ``there``; None without one."""
    plain = _SEPARATORS.sub("_", _plain(name))
    missing = [known for known in LAYOUT[file] if known not in there]
    for known in missing:
        singular = COUNTER_COLUMNS.get(known)
        if singular and _SEPARATORS.sub("", plain).replace("_", "") in {f"{singular}count", f"{singular}s", singular}:
            return known
        if len(plain) >= _LEAST_LETTERS and (known.startswith(f"{plain}_") or known.endswith(f"_{plain}")):
            return known
    close = difflib.get_close_matches(plain, missing, 1, _ALIKE)
    return close[0] if close else None


def faults(file: str, schema: pa.Schema) -> Iterator[Fault]:
    """Every column of ``schema`` that breaks the layout of ``file``."""
    matched = match(file, schema.names)
    for name, column in LAYOUT[file].items():
        if name in matched.twice:
            yield Fault(name, "there more than once", "one column of each name")
        elif name not in matched.names:
            if column.required:
                similar = [other for other in matched.unknown if meant(file, other, matched.names) == name]
                hint = f" (is {similar[0]!r} meant? rename it)" if similar else ""
                yield Fault(name, "missing", column.allowed + hint)
        elif not _fits(kind := schema.field(matched.names[name]).type, column.allowed):
            yield Fault(name, str(kind), column.allowed + _remedy(kind, column.allowed))
    if file == COUNTERS and not set(COUNTER_COLUMNS) & set(matched.names):
        names = ", ".join(COUNTER_COLUMNS)
        yield Fault(names, "missing", f"at least one of {names}")


def _remedy(kind: pa.DataType, allowed: str) -> str:
    """How to make a timestamp of what is often given in its place."""
    kind = stored(kind)
    if allowed != _TIME:
        return ""
    if pa.types.is_date(kind):
        return "; a date has no time of day: give the time itself"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return '; in pandas: pd.to_datetime(column, unit="s", utc=True) for seconds since 1970'
    return "; in pandas: pd.to_datetime(column, utc=True)" if is_text(kind) else ""


def _fits(kind: pa.DataType, allowed: str) -> bool:
    if allowed == _TIME:
        return is_time(kind)
    if allowed == _NUMBER:
        return is_number(kind)
    if allowed == _STRING:
        return is_text(kind)
    if is_list(kind):
        return is_text(stored(kind).value_type)
    return is_text(kind) or bool(pa.types.is_integer(stored(kind)))
