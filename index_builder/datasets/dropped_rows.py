"""Counts the rows that a load leaves out, by reason."""

from __future__ import annotations

from collections import Counter

from index_builder.datasets.parquet_columns import Flags


class DroppedRows:
    """Counts dropped rows.

    ``counts`` maps "file: reason" to a number of rows. ``first`` maps "file: reason" to a description of the first
    row. ``start`` is the row number of the current batch's first row in its file. The reader advances ``start``.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.start = 0

    def add(self, file: str, reason: str, rows: Flags) -> None:
        """Count the flagged rows of the current batch as dropped."""
        if n := int(rows.sum()):
            self.count(file, reason, n, f"row {self.start + int(rows.argmax())}")

    def count(self, file: str, reason: str, n: int, first: str) -> None:
        """Count ``n`` rows as dropped. ``first`` describes the first of these rows."""
        name = f"{file}: {reason}"
        self.counts[name] += n
        self.first.setdefault(name, first)
