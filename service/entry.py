"""Rows on their way into the store: equal ones merged, then packed.

Merging needs the publication time (a bin is an age), so it happens only for videos whose registration this process
remembers; the store refuses a merged batch whose ``published_us`` is not the one it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.bins import bin_index
from service.row import MAX_COUNT, Row


@dataclass(slots=True)
class Entry:
    """One element of a store call; stands for the rows at ``rows``."""

    rows: list[Row]
    time_us: int
    cells: tuple[tuple[str, int], ...]
    reach: int

    def packed(self) -> list[Any]:
        """The array the store's function reads: time, id or False, reach, mode, type, value, ..."""
        first = self.rows[0]
        out: list[Any] = [self.time_us, first.id if first.id is not None else False, self.reach, first.mode]
        for cell in self.cells:
            out += cell
        return out


def single(rows: Sequence[Row]) -> list[Entry]:
    """One entry a row."""
    return [Entry([row], row.time_us, row.cells, row.reach) for row in rows]


def merged(rows: Sequence[Row], published_us: int) -> list[Entry]:
    """Event rows without an id that fall into the same bin become one entry; all others stay as they are."""
    ages = np.array([row.time_us - published_us for row in rows], dtype=np.int64)
    bins = bin_index(np.maximum(ages, 0)).tolist()
    open_entries: dict[tuple[int, str], Entry] = {}
    entries: list[Entry] = []
    for row, index in zip(rows, bins, strict=True):
        if row.id is not None or row.mode != "events" or row.time_us < published_us:
            entries += single([row])
            continue
        kind, count = row.cells[0]
        entry = open_entries.get((index, kind))
        if entry is None or entry.cells[0][1] + count > MAX_COUNT or entry.reach + row.reach > MAX_COUNT:
            entry = single([row])[0]
            open_entries[index, kind] = entry
            entries.append(entry)
        else:
            entry.rows.append(row)
            entry.time_us = max(entry.time_us, row.time_us)
            entry.cells = ((kind, entry.cells[0][1] + count),)
            entry.reach += row.reach
    return entries
