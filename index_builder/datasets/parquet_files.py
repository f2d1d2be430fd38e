"""Reads one table of a data set: a Parquet file, or a folder of Parquet files as written by Spark, Hive and others.

The files of a folder are read in the order of their paths. Rows are numbered continuously through all files. Files
whose names begin with ``_`` or ``.`` (``_SUCCESS``, checksums) and files of other kinds are ignored. If a path contains
``KEY=VALUE``, the file gets an additional column KEY with this value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.datasets.column_matching import Fault, Match, column_faults, match_columns
from index_builder.datasets.file_format import LAYOUT
from index_builder.datasets.parquet_columns import plain
from model.errors import DataError

BATCH_ROWS: Final = 1 << 18
"""Maximum number of rows in memory while a file is read."""
_SUFFIXES: Final = ("", ".parquet", ".parq", ".pq")
_MAGIC: Final = b"PAR1"
_INDEX: Final = re.compile(r"__index_level_\d+__")
"""Name of a column with row labels, which pandas writes."""
_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a table.

    ``name``: name for messages.
    ``fixed``: columns that come from the file's path, with their values.
    ``schema``: schema of the file, including the columns ``fixed``.
    ``rows``: number of rows.
    ``match``: how the file's columns map to the format.
    """

    path: Path
    name: str
    fixed: dict[str, str | None]
    schema: pa.Schema
    rows: int
    match: Match


class ParquetTable:
    """Finds the files of one table and yields its rows as batches.

    ``names`` are the columns of the format that are present. ``further`` are the other columns, without those that
    hold the row labels of pandas.

    Args:
        path: the file or folder. Its name is one of the names in ``LAYOUT``.

    Raises:
        DataError: the file or folder is missing, or one of the files is not a readable Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.name
        self.left_out: list[str] = []
        files = self._files(path) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: the folder contains no Parquet file")
        self.parts = [self._part(path, file) for file in files]
        self.rows = sum(part.rows for part in self.parts)
        self.names = tuple(name for name in LAYOUT[self.file] if any(name in part.match.names for part in self.parts))
        unknown = dict.fromkeys(name for part in self.parts for name in part.match.unknown)
        self.further = tuple(name for name in unknown if not _INDEX.fullmatch(name))

    def _files(self, folder: Path) -> list[Path]:
        found = []
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_dir() or any(name.startswith(("_", ".")) for name in inside.parts):
                continue
            if path.suffix.lower() in _SUFFIXES or _begins(path):
                found.append(path)
            else:
                self.left_out.append(str(inside))
        return found

    def _part(self, root: Path, path: Path) -> Part:
        inside = path.relative_to(root)
        name = root.name if path == root else f"{root.name}/{inside}"
        with open_parquet(path, name) as file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
        fixed = {}
        for folder in inside.parts[:-1]:
            key, equals, value = folder.partition("=")
            if equals and key not in schema.names:
                fixed[key] = None if value == _NULL else unquote(value)
                schema = schema.append(pa.field(key, pa.string()))
        return Part(path, name, fixed, schema, rows, match_columns(self.file, schema.names))

    def faults(self) -> Iterator[tuple[str, Fault]]:
        """Yield every column that breaks the format, together with the name of its file."""
        for part in self.parts:
            for fault in column_faults(self.file, part.schema):
                yield part.name, fault

    def types_of(self, further: str) -> list[pa.DataType]:
        """Return the types that a further column has in the files that contain it."""
        return [part.schema.field(further).type for part in self.parts if further in part.match.unknown]

    def batches(self, further: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of up to ``BATCH_ROWS``.

        The batches have the columns ``names``, named as in the format, and then the columns ``further``.

        Raises:
            DataError: a file is damaged.
        """
        for part in self.parts:
            names = {**part.match.names, **{name: name for name in further if name in part.match.unknown}}
            wanted = [name for name in names.values() if name not in part.fixed]
            with open_parquet(part.path, part.name) as file:
                try:
                    for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                        yield self._named(part, names, (*self.names, *further), batch)
                except (pa.ArrowException, OSError) as error:
                    raise DataError(f"{part.name}: cannot be read: {_line(error)}") from None

    def _named(
        self, part: Part, given_names: Mapping[str, str], names: Sequence[str], batch: pa.RecordBatch
    ) -> pa.RecordBatch:
        arrays = []
        for name in names:
            given = given_names.get(name)
            if given is None:
                arrays.append(pa.nulls(len(batch)))
            elif given in part.fixed:
                arrays.append(pa.repeat(pa.scalar(part.fixed[given], pa.large_string()), len(batch)))
            else:
                arrays.append(plain(batch.column(given)))
        return pa.RecordBatch.from_arrays(arrays, list(names))


def open_parquet(path: Path, name: str | None = None) -> pq.ParquetFile:
    """Open a Parquet file. ``name`` is used in messages.

    Raises:
        DataError: the file is missing or is not a Parquet file.
    """
    name = str(path) if name is None else name
    try:
        # Spark and Impala wrote an old type of timestamp. If this type is read as nanoseconds, times outside the years
        # 1678 to 2261 overflow. Microseconds do not overflow.
        return pq.ParquetFile(path, coerce_int96_timestamp_unit="us")
    except FileNotFoundError:
        raise DataError(f"{name}: the file is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as a Parquet file: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
