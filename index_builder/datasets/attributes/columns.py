"""Reads the further columns of videos.parquet as attributes of the videos.

A column of numbers, booleans, strings or lists of strings is read. A column of another type is not. A cell that breaks
the limits of an attribute is read as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from index_builder.datasets import parquet_columns
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.attributes import (
    ALLOWED_NAME,
    MAX_ATTRIBUTES,
    Attributes,
    attributes_of,
    is_name,
    is_value,
)

CellKind = Literal["number", "boolean", "text", "list"]
_LIST: Final = pa.large_list(pa.large_string())
WRITTEN: Final[dict[str, pa.DataType]] = {
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.large_string(),
    "list": _LIST,
}
"""Arrow type of each kind of column."""


def readable_columns(table: ParquetTable) -> tuple[dict[str, CellKind], dict[str, str]]:
    """Return the further columns that can be attributes, with their kinds, and the other further columns, with the reasons."""
    kinds: dict[str, CellKind] = {}
    unread: dict[str, str] = {}
    for name in table.further:
        found = {_kind(dtype): str(dtype) for dtype in table.types_of(name)}
        kind = next(iter(found))
        if not is_name(name):
            unread[name] = f"its name is too long; allowed: {ALLOWED_NAME}"
        elif None in found:
            dtype = found[None]
            unread[name] = "a time" if dtype.startswith(("timestamp", "date", "time", "duration")) else f"is {dtype}"
        elif kind is None or len(found) > 1:
            unread[name] = f"has several types: {', '.join(found.values())}"
        elif len(kinds) == MAX_ATTRIBUTES:
            unread[name] = f"only {MAX_ATTRIBUTES} columns are read"
        else:
            kinds[name] = kind
    return kinds, unread


def _kind(dtype: pa.DataType) -> CellKind | None:
    stored = parquet_columns.storage_type(dtype)
    if pa.types.is_boolean(stored):
        return "boolean"
    if parquet_columns.is_number(stored) and not pa.types.is_null(stored):
        return "number"
    if parquet_columns.is_text(stored):
        return "text"
    if parquet_columns.is_list(stored) and parquet_columns.is_text(stored.value_type):
        return "list"
    return None


def converted(kind: CellKind, column: pa.Array) -> pa.Array:
    """Return a column in one Arrow type for each kind, whatever the file's type. A column of nulls fits every kind."""
    column = parquet_columns.plain(column)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), WRITTEN[kind])
    if kind == "number":
        return column.cast(pa.float64(), safe=False)
    if kind == "text":
        return parquet_columns.text(column)
    if kind == "list":
        return parquet_columns.string_lists(column)
    return column.cast(pa.bool_())


def attributes_of_rows(columns: Sequence[tuple[str, pa.Array]], rows: int) -> list[Attributes]:
    """Return the attributes of each row. ``columns`` are pairs of a name and a converted column."""
    names = [name for name, _ in columns]
    cells = [_values(array) for _, array in columns]
    if not cells:
        return [()] * rows
    return [attributes_of(dict(zip(names, row, strict=True))) for row in zip(*cells, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    """Return the cells of a column. Equal strings are one object. A cell that breaks a limit is None."""
    if pa.types.is_floating(array.type):
        numbers = array.fill_null(np.nan).to_pylist()
        return [value if is_value(value) else None for value in numbers]
    if pa.types.is_large_string(array.type):
        encoded = array.dictionary_encode()
        known = [value if is_value(value) else None for value in encoded.dictionary.to_pylist()]
        return [None if index is None else known[index] for index in encoded.indices.to_pylist()]
    if pa.types.is_boolean(array.type):
        return list(array.to_pylist())
    shared: dict[str, str] = {}
    return [
        None if cell is None or not is_value(cell) else [shared.setdefault(item, item) for item in cell]
        for cell in array.to_pylist()
    ]
