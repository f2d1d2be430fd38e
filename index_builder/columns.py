"""Parquet columns of a data set as numpy arrays in the project's units.

    timestamp column  -> int64 microseconds since 1970 UTC, rounded down; a naive timestamp is read as UTC
    number column     -> int64 counts, and which rows are no count
    id column         -> index into a list of known ids

A column of the wrong Arrow type is refused; wrong *cells* are told by masks, for the caller to drop or to report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.errors import DataError

BATCH_ROWS: Final = 1 << 18
"""Rows held in memory while a file streams by."""
_MAX_COUNT: Final = 2**62
_UNITS_US: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Times:
    """``us`` (n,) int64 microseconds since 1970 UTC, 0 where ``null`` (n,) bool."""

    us: NDArray[np.int64]
    null: Flags


@dataclass(frozen=True, slots=True)
class Counts:
    """``values`` (n,) int64, 0 where a flag is set; the flags (n,) bool exclude one another.

    ``nan`` is a floating-point not-a-number, which writers of Parquet often mean as null.
    """

    values: NDArray[np.int64]
    null: Flags
    nan: Flags
    negative: Flags
    fractional: Flags
    too_large: Flags

    def invalid(self) -> Flags:
        """Rows whose value is there but can never be a count, (n,) bool."""
        return self.negative | self.fractional | self.too_large


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one file of a data set.

    Raises:
        DataError: it is missing or no Parquet file.
    """
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as a Parquet file: {error}") from None


def batches(path: Path, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows, ``BATCH_ROWS`` at a time, of those of ``columns`` that it has."""
    with open_parquet(path) as file:
        present = set(file.schema_arrow.names)
        try:
            yield from file.iter_batches(BATCH_ROWS, columns=[c for c in columns if c in present], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers (a column of nulls counts as numbers)."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def text(array: pa.Array) -> pa.Array:
    """A column of strings as a plain ``large_string`` array."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.large_string())


def times(array: pa.Array) -> Times:
    """A timestamp column of any unit and zone as microseconds.

    Raises:
        DataError: a time is more than 290,000 years from 1970.
    """
    null = _mask(array.is_null())
    raw = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    unit = array.type.unit
    if unit == "ns":
        return Times(np.floor_divide(raw, 1000), null)
    factor = _UNITS_US[unit]
    limit = np.iinfo(np.int64).max // factor
    if len(raw) and (int(raw.max()) > limit or int(raw.min()) < -limit):
        raise DataError(f"a time of {int(np.abs(raw).max())} {unit} since 1970 is out of range")
    return Times(raw if factor == 1 else raw * factor, null)


def counts(array: pa.Array) -> Counts:
    """A number column as counts, with what is no count flagged."""
    n = len(array)
    null = _mask(array.is_null())
    if pa.types.is_floating(array.type):
        real = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        nan = np.isnan(real)
        real = np.where(nan, 0.0, real)
        negative = real < 0
        too_large = real > _MAX_COUNT
        fractional = ~negative & ~too_large & (np.floor(real) != real)
        bad = negative | too_large | fractional
        return Counts(np.where(bad, 0.0, real).astype(np.int64), null, nan, negative, fractional, too_large)
    none = np.zeros(n, np.bool_)
    if pa.types.is_null(array.type):
        return Counts(np.zeros(n, np.int64), null, none, none, none, none)
    whole = array.fill_null(0).to_numpy(zero_copy_only=False)
    negative, too_large = whole < 0, whole > _MAX_COUNT
    return Counts(np.where(negative | too_large, 0, whole).astype(np.int64), null, none, negative, none, too_large)


def positions(ids: pa.Array, known: pa.Array) -> NDArray[np.int64]:
    """Index of each id in ``known``, (n,) int64; -1 where it is null or not there."""
    found = pc.index_in(text(ids), value_set=known, skip_nulls=True)
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def first_cell(array: pa.Array, flags: Flags) -> Any:
    """The first flagged cell as a Python value, for a message; None if there is none."""
    return array[int(flags.argmax())].as_py() if flags.any() else None


def _mask(array: pa.Array) -> Flags:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)
