"""The rows of a round, sorted by video, and equal ones added up.

Event rows without an id that fall into the same bin become one row. That needs the publication time, as a bin is an age.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import N_BINS, bin_index
from service.store.event_ids import NONE
from service.store.row_batch import COUNTERS, KINDS, RowBatch, filled, listed, renamed

Ints = NDArray[np.int64]
T = TypeVar("T")

_EXACT: Final = 2**52
"""Sums below it are merged; near the limit of counts each row is judged alone."""


class Table:
    """Rows sorted by video, those of a video in the batches' order; element i of every column belongs to row i.

    ``origin`` is a row's place among all rows of the batches, ``codes`` its video's place in ``videos``.
    """

    def __init__(self, batches: Sequence[RowBatch]) -> None:
        sizes = [len(batch) for batch in batches]
        names: dict[str, int] = {}
        videos: dict[str, int] = {}
        codes = np.array([videos.setdefault(v, len(videos)) for b in batches for v in b.video_ids], np.int64)
        order = np.argsort(codes, kind="stable")
        kinds = np.concatenate([renamed(batch, names) for batch in batches])
        self.names, self.videos = list(names), list(videos)
        self.origin: Ints = order
        self.codes: Ints = codes[order]
        self.times_us: Ints = np.concatenate([batch.times_us for batch in batches])[order]
        self.kinds: NDArray[np.uint8] = kinds[order]
        self.counts = _joined([batch.counts for batch in batches], sizes, 1, order)
        self.reaches = _joined([batch.reaches for batch in batches], sizes, 0, order)
        self.ids = _picked([batch.ids for batch in batches], sizes, NONE, order)
        self.cells = _picked([batch.cells for batch in batches], sizes, (), order)
        self._grouped: tuple[Ints, Ints] | None = None
        self._place_of: dict[int, int] | None = None
        self._origins: list[int] = []

    def __len__(self) -> int:
        return len(self.origin)

    def mergeable(self) -> NDArray[np.bool_]:
        """Which rows are events without an id, (n,)."""
        free: NDArray[np.bool_] = self.kinds != COUNTERS
        return free if self.ids is None else free & np.array([one == NONE for one in self.ids], bool)

    def merge(self, free: NDArray[np.bool_], age_us: Ints) -> None:
        """Add up, in the first of them, the rows among ``free`` with one video, bin and type; ages are >= 0 there."""
        rows = np.flatnonzero(free)
        cells = (self.codes[rows] * N_BINS + bin_index(age_us[rows])) * KINDS + self.kinds[rows]
        by_cell = np.argsort(cells, kind="stable")
        rows, cells = rows[by_cell], cells[by_cell]
        starts = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))
        if self.counts is None:
            self.counts = np.ones(len(free), np.int64)
        fits = np.ones(len(starts), bool)
        for column in (self.counts, self.reaches):
            if column is not None:
                fits &= np.add.reduceat(column[rows].astype(float), starts) < _EXACT
        firsts = rows[starts][fits]
        for column, combined in ((self.counts, np.add), (self.reaches, np.add), (self.times_us, np.maximum)):
            if column is not None:
                column[firsts] = combined.reduceat(column[rows], starts)[fits]
        # A group too large to add up stays as it is: each of its rows begins a group of its own.
        begins = np.repeat(~fits, np.diff(np.append(starts, len(rows))))
        begins[starts] = True
        self._grouped = self.origin[rows], np.flatnonzero(begins)
        kept = np.ones(len(free), bool)
        kept[rows[~begins]] = False
        self._keep(np.flatnonzero(kept))

    def members(self, row: int) -> list[int]:
        """Places, among all rows of the batches, of the rows that row ``row`` stands for."""
        if not self._origins:
            self._origins = self.origin.tolist()
        origin = self._origins[row]
        if self._grouped is not None:
            rows, starts = self._grouped
            if self._place_of is None:
                self._place_of = dict(zip(rows[starts].tolist(), range(len(starts)), strict=True))
            group = self._place_of.get(origin)
            if group is not None:
                found: list[int] = rows[starts[group] : starts[group + 1] if group + 1 < len(starts) else None].tolist()
                return found
        return [origin]

    def _keep(self, rows: Ints) -> None:
        self.origin, self.codes, self.times_us = self.origin[rows], self.codes[rows], self.times_us[rows]
        self.kinds = self.kinds[rows]
        self.counts = None if self.counts is None else self.counts[rows]
        self.reaches = None if self.reaches is None else self.reaches[rows]
        self._origins = []
        chosen = rows.tolist()
        self.ids = None if self.ids is None else [self.ids[i] for i in chosen]
        self.cells = None if self.cells is None else [self.cells[i] for i in chosen]


def _joined(columns: Sequence[Ints | None], sizes: Sequence[int], default: int, order: Ints) -> Ints | None:
    joined = filled(columns, sizes, default)
    return None if joined is None else joined[order]


def _picked(columns: Sequence[list[T] | None], sizes: Sequence[int], default: T, order: Ints) -> list[T] | None:
    flat = listed(columns, sizes, default)
    return None if flat is None else [flat[i] for i in order.tolist()]
