"""Collects findings about a data set batch by batch, and prints the findings as a table.

    error    The data set cannot be loaded, or it has cells that are always wrong.
             Examples: an empty id, a negative count.
    warning  Rows are left out, or they are used although they are doubtful.
             Examples: a row before publication, a falling counter, a time without a zone.
    info     Something worth knowing.

Rows are numbered from 0 in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from index_builder.datasets import parquet_columns
from index_builder.datasets.file_format import LAYOUT

Severity = Literal["error", "warning", "info"]
_STYLE: Final = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_ORDER: Final = tuple(_STYLE)
_FILES: Final = tuple(LAYOUT)
_SHOWN: Final = 60
_WIDTH: Final = 160
"""Width of the table in characters if the output is not a terminal."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in one column.

    ``first_row`` is the number of the first faulty row, and ``rows`` is the number of faulty rows. Both are None if
    the fault does not concern rows.
    """

    severity: Severity
    file: str
    column: str
    problem: str
    first_row: int | None = None
    rows: int | None = None


class Findings:
    """Collects the findings of one check. Faults of cells are added up over the batches of a file.

    A row later than ``now_us`` (microseconds UTC) is in the future.
    """

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us
        self._found: list[Finding] = []
        self._open: dict[tuple[Severity, str, str, str], tuple[int, int, str]] = {}

    def note(self, severity: Severity, file: str, column: str, problem: str) -> None:
        """Add a finding that does not concern rows."""
        self._found.append(Finding(severity, file, column, problem))

    def rows(
        self,
        severity: Severity,
        file: str,
        column: str,
        problem: str,
        rows: parquet_columns.Flags,
        start: int,
        cells: Any,
    ) -> None:
        """Add the flagged rows of a batch to a finding.

        ``start`` is the row number of the batch's first row. ``cells`` contains the value to show for each row.
        """
        if not (n := int(rows.sum())):
            return
        key, at = (severity, file, column, problem), int(rows.argmax())
        first, before, shown = self._open.get(key, (start + at, 0, ""))
        self._open[key] = (first, before + n, shown or _show(cells[at]))

    def numbered(self, severity: Severity, file: str, column: str, problem: str, rows: NDArray[np.int64]) -> None:
        """Add a finding about ``rows`` (n,) int64, the row numbers in the file."""
        if len(rows):
            self._found.append(Finding(severity, file, column, problem, int(rows.min()), len(rows)))

    def sorted(self) -> list[Finding]:
        """Return all findings: errors first, then in the order of the files."""
        cells = []
        for (severity, file, column, problem), (first, n, shown) in self._open.items():
            cells.append(Finding(severity, file, column, f"{problem}, first: {shown}" if shown else problem, first, n))
        return sorted(self._found + cells, key=lambda f: (_ORDER.index(f.severity), (*_FILES, f.file).index(f.file)))

    def times(self, file: str, column: str, array: pa.Array, start: int) -> parquet_columns.Times:
        """Return the times of a batch, and add findings about them."""
        times = parquet_columns.times(array)
        self.rows("error", file, column, "no time", times.null, start, [""] * len(array))
        self.rows(
            "error",
            file,
            column,
            f"outside {parquet_columns.YEARS}; left out",
            times.out_of_range,
            start,
            array.cast(pa.int64()),
        )
        future = ~times.missing() & (times.us > self.now_us)
        self.rows("warning", file, column, "in the future", future, start, times.us.view("datetime64[us]"))
        return times

    def text(self, severity: Severity, file: str, column: str, array: pa.Array, start: int) -> pa.Array:
        """Return the strings of a batch, and add a finding about cells that are not UTF-8."""
        text = parquet_columns.text(array)
        bad = parquet_columns.not_utf8(array, text)
        self.rows(severity, file, column, "not UTF-8; read as missing", bad, start, _raw(array) if bad.any() else array)
        return text

    def counts(self, file: str, column: str, array: pa.Array, start: int) -> parquet_columns.Counts:
        """Return the counts of a batch, and add findings about cells that cannot be counts."""
        counts = parquet_columns.counts(array)
        self.rows("error", file, column, "negative", counts.negative, start, array)
        self.rows("error", file, column, "fractional", counts.fractional, start, array)
        self.rows("error", file, column, "too large", counts.too_large, start, array)
        return counts


def console(stderr: bool = False) -> Console:
    """Return the console for tables. If the output is not a terminal, the console is wide, so that few messages are wrapped."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=_WIDTH)


def report(findings: Iterable[Finding], console: Console) -> bool:
    """Print the findings as a table. Return True if there was no error."""
    findings = list(findings)
    if not findings:
        console.print("nothing found: the data set is fine", style="green")
        return True
    table = Table()
    for name in ("severity", "file", "column", "what"):
        table.add_column(name, no_wrap=name == "file")
    table.add_column("first row", justify="right")
    table.add_column("rows", justify="right")
    for finding in findings:
        table.add_row(
            f"[{_STYLE[finding.severity]}]{finding.severity}[/]",
            escape(finding.file),
            finding.column,
            escape(finding.problem),
            "" if finding.first_row is None else str(finding.first_row),
            "" if finding.rows is None else f"{finding.rows:,}",
        )
    console.print(table)
    counts = {severity: sum(f.severity == severity for f in findings) for severity in _ORDER}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings; rows are numbered from 0")
    return not counts["error"]


def _raw(array: pa.Array) -> pa.Array:
    """Return strings as bytes, so that cells that are not valid text can be shown."""
    return array.cast(pa.large_binary())


def _show(cell: Any) -> str:
    cell = cell.as_py() if isinstance(cell, pa.Scalar) else cell
    text = f"{cell}Z" if isinstance(cell, np.datetime64) else str(cell)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
