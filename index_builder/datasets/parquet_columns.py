"""Converts Parquet columns of a data set to numpy arrays in the project's units.

    timestamp column  -> int64 microseconds since 1970 UTC, rounded down. A timestamp without a zone is read as UTC.
    number column     -> int64 counts or float64 numbers, and masks of the invalid cells.
    text column       -> large_string. Bytes that are not UTF-8 are read as missing.
    id column         -> indices into a list of known ids.

Data with the same meaning comes in many Arrow types. Text may be string, string_view, binary or a dictionary. Whole
numbers may be DECIMAL or floating point. All of these types are accepted. ``index_builder.datasets.column_matching``
refuses columns of other types. Invalid *cells* are flagged by masks, and the caller drops or reports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_MAX_COUNT: Final = 2**62
_UNITS: Final = {"s": (1, 1_000_000), "ms": (1, 1_000), "us": (1, 1), "ns": (1_000, 1)}
"""Divisor and factor that convert a unit to microseconds."""
_EARLIEST_US: Final = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_LATEST_US: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
YEARS: Final = "years 1 to 9998"
"""Range of usable times, in words."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Times:
    """Times of a column.

    ``us`` (n,) int64: microseconds since 1970 UTC, 0 where a flag is set.
    ``null`` (n,) bool: True for cells without a time.
    ``out_of_range`` (n,) bool: True for times outside ``YEARS``, which are often placeholders.
    """

    us: NDArray[np.int64]
    null: Flags
    out_of_range: Flags

    def missing(self) -> Flags:
        """Return flags (n,) bool of the rows without a usable time."""
        return self.null | self.out_of_range


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a column, and flags (n,) bool of invalid cells. A cell has at most one flag.

    ``values`` (n,) int64 is 0 where a flag is set. ``nan`` flags floating-point NaN, which programs that write Parquet
    often use for missing values.
    """

    values: NDArray[np.int64]
    null: Flags
    nan: Flags
    negative: Flags
    fractional: Flags
    too_large: Flags

    def invalid(self) -> Flags:
        """Return flags (n,) bool of the rows whose value cannot be a count."""
        return self.negative | self.fractional | self.too_large


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of a column, and flags (n,) bool of invalid cells.

    ``values`` (n,) float64 is >= 0, or NaN where the number is missing or flagged.
    """

    values: NDArray[np.float64]
    negative: Flags
    too_large: Flags


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of a column without its dictionaries, run lengths and extensions."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and kind.extension_name != "arrow.bool8":
            kind = kind.storage_type
        else:
            return kind


def plain(array: pa.Array) -> pa.Array:
    """Return the cells of ``array`` without dictionaries, run lengths and extensions."""
    while True:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        else:
            return array


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds strings, or bytes that may be strings."""
    kind = storage_type(kind)
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
            pa.types.is_null,
        )
    )


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists, of fixed or variable length."""
    kind = storage_type(kind)
    return any(
        test(kind)
        for test in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds numbers. A column of nulls counts as a number column."""
    kind = storage_type(kind)
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    )


def is_time(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds timestamps. A column of nulls counts as a timestamp column."""
    kind = storage_type(kind)
    return bool(pa.types.is_timestamp(kind) or pa.types.is_null(kind))


def is_naive(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds timestamps without a time zone."""
    kind = storage_type(kind)
    return bool(pa.types.is_timestamp(kind) and kind.tz is None)


def text(array: pa.Array) -> pa.Array:
    """Convert a column of strings to a plain ``large_string`` array. Cells that are not UTF-8 become null."""
    array = plain(array)
    if pa.types.is_integer(array.type) or pa.types.is_null(array.type):
        return array.cast(pa.large_string())
    raw = array.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array(map(_decoded, raw.to_pylist()), pa.large_string())


def _decoded(cell: bytes | None) -> str | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return None


def texts(array: pa.Array) -> pa.Array:
    """Convert a column of strings, whole numbers or lists of strings to ``large_string``.

    The elements of a list are joined by commas. Null elements are skipped.
    """
    array = plain(array)
    if not is_list(array.type):
        return text(array)
    joined = [None if found is None else ",".join(found) for found in _string_lists(array)]
    return pa.array(joined, pa.large_string())


def string_lists(array: pa.Array) -> pa.Array:
    """Convert a column of lists of strings to lists of ``large_string``. Null elements are skipped."""
    return pa.array(_string_lists(plain(array)), pa.large_list(pa.large_string()))


def _string_lists(array: pa.Array) -> list[list[str] | None]:
    if pa.types.is_string_view(array.type.value_type) or pa.types.is_binary_view(array.type.value_type):
        array = array.cast(pa.large_list(pa.large_binary()))
    cells = iter(text(array.flatten()).to_pylist())
    lengths = pc.list_value_length(array).to_pylist()
    return [None if n is None else [cell for cell in islice(cells, n) if cell is not None] for n in lengths]


def not_utf8(array: pa.Array, decoded: pa.Array) -> Flags:
    """Return flags (n,) bool of the cells that have a value in ``array`` but are null in ``decoded``, the result of ``text``."""
    return _mask(decoded.is_null()) & ~_mask(plain(array).is_null())


def times(array: pa.Array) -> Times:
    """Convert a timestamp column of any unit and zone to microseconds."""
    array = plain(array)
    null = _mask(array.is_null())
    if pa.types.is_null(array.type):
        return Times(np.zeros(len(array), np.int64), null, np.zeros(len(array), np.bool_))
    raw = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    divisor, factor = _UNITS[array.type.unit]
    raw = raw if divisor == 1 else np.floor_divide(raw, divisor)
    out_of_range = (raw < _EARLIEST_US // factor) | (raw >= _LATEST_US // factor)
    # Only values in range are multiplied. An overflow would turn an impossible time into a plausible one.
    us = raw if factor == 1 else np.where(out_of_range, 0, raw) * factor
    return Times(np.where(out_of_range, 0, us), null, out_of_range)


def counts(array: pa.Array) -> Counts:
    """Convert a number column to counts. Cells that are not counts are flagged."""
    array = plain(array)
    n = len(array)
    null = _mask(array.is_null())
    if pa.types.is_decimal(array.type):
        try:
            array = array.cast(pa.int64())
        except pa.ArrowInvalid:
            return _decimals(array, null)
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


def _decimals(array: pa.Array, null: Flags) -> Counts:
    """Convert decimals to counts one by one.

    This function is for decimals that are not all whole, or do not fit int64. Floating point is not exact enough for
    these decimals.
    """
    cells = [0 if cell is None else cell for cell in array.to_pylist()]
    negative = np.array([cell < 0 for cell in cells], np.bool_)
    too_large = np.array([cell > _MAX_COUNT for cell in cells], np.bool_)
    fractional = np.array([cell % 1 != 0 for cell in cells], np.bool_) & ~negative & ~too_large
    bad = negative | too_large | fractional
    values = np.array([0 if wrong else int(cell) for cell, wrong in zip(cells, bad, strict=True)], np.int64)
    return Counts(values, null, np.zeros(len(cells), np.bool_), negative, fractional, too_large)


def numbers(array: pa.Array) -> Numbers:
    """Convert a number column to float64. Values that are negative, infinite or above 2^62 are placeholders and become NaN."""
    array = plain(array)
    real = array.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    negative, too_large = real < 0, real > _MAX_COUNT
    return Numbers(np.where(negative | too_large, np.nan, real), negative, too_large)


def positions(ids: pa.Array, known: pa.Array) -> NDArray[np.int64]:
    """Return the index (n,) int64 of each id in ``known``, or -1 for null and unknown ids."""
    found = pc.index_in(text(ids), value_set=known, skip_nulls=True)
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def empty(names: pa.Array) -> Flags:
    """Return flags (n,) bool of the cells of a ``large_string`` array that are null or empty."""
    flags = pc.or_kleene(pc.is_null(names), pc.equal(names, "")).fill_null(True)
    return np.asarray(flags.to_numpy(zero_copy_only=False), np.bool_)


def _mask(array: pa.Array) -> Flags:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)
