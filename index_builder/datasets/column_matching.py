"""Maps the columns of a Parquet file to the columns of the format, and finds the columns that break the format.

The comparison of names ignores case and blanks around a name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from index_builder.datasets.file_format import COUNTERS_FILE, ID, LAYOUT, NUMBER, TIME
from index_builder.datasets.parquet_columns import is_list, is_number, is_text, is_time, storage_type
from model.engagement.types import COUNTER_COLUMNS

_SIMILARITY: Final = 0.8
"""Minimum difflib ratio at which an unknown name is treated as a misspelling of a known name."""
_MIN_LETTERS: Final = 4
"""Minimum length of an unknown name that may be an abbreviation of a known name.

For example, "followers" may stand for "creator_followers".
"""
_SEPARATORS: Final = re.compile(r"[-\s.]+")
_BYTE_ORDER_MARK: Final = "\ufeff"
"""Byte order mark. If the data comes from a CSV file, the first column's name may still start with this mark."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A column that is missing or of a wrong type. ``found`` is the column's type in words, or "missing"."""

    column: str
    found: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Match:
    """Describes how a file's columns map to the format.

    ``names`` maps a column of the format to its name in the file. ``duplicates`` are columns of the format that the
    file contains more than once. ``unknown`` are the file's other columns.
    """

    names: Mapping[str, str]
    duplicates: tuple[str, ...]
    unknown: tuple[str, ...]


def match_columns(file: str, names: list[str]) -> Match:
    """Find the columns of ``file`` among ``names``. An exact name wins over a name that differs in case or blanks."""
    found: dict[str, list[str]] = {}
    unknown = []
    for name in names:
        known = _normalised(name)
        if known in LAYOUT[file] and not (name != known and known in names):
            found.setdefault(known, []).append(name)
        else:
            unknown.append(name)
    duplicates = tuple(known for known, same in found.items() if len(same) > 1)
    return Match({known: same[0] for known, same in found.items()}, duplicates, tuple(unknown))


def _normalised(name: str) -> str:
    return name.strip().strip(_BYTE_ORDER_MARK).strip().casefold()


def similar_column(file: str, name: str, present: Mapping[str, str]) -> str | None:
    """Return the column of ``file`` that an unknown ``name`` probably means, or None.

    Only columns that are not in ``present`` are considered.
    """
    plain = _SEPARATORS.sub("_", _normalised(name))
    missing = [known for known in LAYOUT[file] if known not in present]
    for known in missing:
        singular = COUNTER_COLUMNS.get(known)
        if singular and _SEPARATORS.sub("", plain).replace("_", "") in {f"{singular}count", f"{singular}s", singular}:
            return known
        if len(plain) >= _MIN_LETTERS and (known.startswith(f"{plain}_") or known.endswith(f"_{plain}")):
            return known
    close = difflib.get_close_matches(plain, missing, 1, _SIMILARITY)
    return close[0] if close else None


def column_faults(file: str, schema: pa.Schema) -> Iterator[Fault]:
    """Yield a fault for every column of ``schema`` that breaks the format of ``file``."""
    matched = match_columns(file, schema.names)
    for name, column in LAYOUT[file].items():
        if name in matched.duplicates:
            yield Fault(name, "present more than once", "one column of each name")
        elif name not in matched.names:
            if column.required:
                similar = [other for other in matched.unknown if similar_column(file, other, matched.names) == name]
                hint = f" (is {similar[0]!r} meant? rename it)" if similar else ""
                yield Fault(name, "missing", column.allowed + hint)
        elif not _fits(dtype := schema.field(matched.names[name]).type, column.allowed):
            yield Fault(name, str(dtype), column.allowed + _remedy(dtype, column.allowed))
    if file == COUNTERS_FILE and not set(COUNTER_COLUMNS) & set(matched.names):
        names = ", ".join(COUNTER_COLUMNS)
        yield Fault(names, "missing", f"at least one of {names}")


def _remedy(dtype: pa.DataType, allowed: str) -> str:
    """Return a hint on how to convert ``dtype`` to a timestamp, or "" if there is none."""
    dtype = storage_type(dtype)
    if allowed != TIME:
        return ""
    if pa.types.is_date(dtype):
        return "; a date has no time of day: give the time itself"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return '; in pandas: pd.to_datetime(column, unit="s", utc=True) for seconds since 1970'
    return "; in pandas: pd.to_datetime(column, utc=True)" if is_text(dtype) else ""


def _fits(dtype: pa.DataType, allowed: str) -> bool:
    if allowed == TIME:
        return is_time(dtype)
    if allowed == NUMBER:
        return is_number(dtype)
    if allowed == ID:
        return is_text(dtype)
    if is_list(dtype):
        return is_text(storage_type(dtype).value_type)
    return is_text(dtype) or bool(pa.types.is_integer(storage_type(dtype)))
