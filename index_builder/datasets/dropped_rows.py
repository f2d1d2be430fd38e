"""Rows that a load leaves out, counted by reason."""

from __future__ import annotations

from collections import Counter

from index_builder.datasets.parquet_columns import Flags


class DroppedRows:
    """``counts`` maps "file: reason" to a number of rows, ``first`` to the first of them in words.

    ``start`` is the number of the current batch's first row in its file; the reader advances it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.start = 0

    def add(self, file: str, reason: str, rows: Flags) -> None:
        """Count the flagged rows of the current batch."""
        if n := int(rows.sum()):
            self.count(file, reason, n, f"row {self.start + int(rows.argmax())}")

    def count(self, file: str, reason: str, n: int, first: str) -> None:
        """Count ``n`` rows; ``first`` describes the first of them."""
        name = f"{file}: {reason}"
        self.counts[name] += n
        self.first.setdefault(name, first)
