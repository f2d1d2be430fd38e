"""The rows of a commit, sorted by video. Similar events are merged.

Event rows of one video are merged into one row if they have no id, the same type, and an age in the same age bin. The age is counted
from the video's publication time, so merging needs that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import N_BINS, bin_index
from service.store.rows.event_ids import NONE
from service.store.rows.row_batch import (
    COUNTERS_ROW,
    TYPE_CODES,
    RowBatch,
    joined_lists,
    joined_numbers,
    recoded,
)
from service.store.rows.row_fields import COUNT, REACH

Ints = NDArray[np.int64]
T = TypeVar("T")

_EXACT: Final = 2**52
"""Rows are only merged if the sums of their counts and reaches are below this number. Near ``MAX_COUNT``, the store must accept or
refuse each row separately."""


class RowTable:
    """Rows sorted by video. Rows of one video keep the batches' order. Element i of every column belongs to row i.

    ``origins``: the row's position among all rows of the batches.
    ``video_codes``: the position of the row's video in ``videos``.
    """

    def __init__(self, batches: Sequence[RowBatch]) -> None:
        sizes = [len(batch) for batch in batches]
        types: dict[str, int] = {}
        videos: dict[str, int] = {}
        codes = np.array([videos.setdefault(v, len(videos)) for b in batches for v in b.video_ids], np.int64)
        order = np.argsort(codes, kind="stable")
        type_codes = np.concatenate([recoded(batch, types) for batch in batches])
        self.types, self.videos = list(types), list(videos)
        self.origins: Ints = order
        self.video_codes: Ints = codes[order]
        self.times_us: Ints = np.concatenate([batch.times_us for batch in batches])[order]
        self.type_codes: NDArray[np.uint8] = type_codes[order]
        self.counts = _ordered_numbers([batch.counts for batch in batches], sizes, COUNT.default, order)
        self.reaches = _ordered_numbers([batch.reaches for batch in batches], sizes, REACH.default, order)
        self.ids = _ordered_lists([batch.ids for batch in batches], sizes, NONE, order)
        self.cells = _ordered_lists([batch.cells for batch in batches], sizes, (), order)
        self._groups: tuple[Ints, Ints] | None = None
        """The values in ``origins`` of all mergeable rows, sorted by group, and the position where each group starts."""
        self._group_of: dict[int, int] | None = None
        self._origin_list: list[int] = []

    def __len__(self) -> int:
        return len(self.origins)

    def merge_known(self, published_us: Mapping[str, int]) -> list[int] | None:
        """Merge the events of the videos whose publication time is given.

        Return the publication time that was used for each video, or 0 for a video without merged rows. Return None if no row
        could be merged.
        """
        mergeable = self._mergeable()
        if not mergeable.any():
            return None
        published = np.array([published_us.get(video_id, -1) for video_id in self.videos], np.int64)
        by_row = published[self.video_codes]
        age_us = self.times_us - by_row
        mergeable &= (by_row >= 0) & (age_us >= 0)
        if not mergeable.any():
            return None
        merged_by = np.zeros(len(self.videos), np.int64)
        merged_by[self.video_codes[mergeable]] = by_row[mergeable]
        self._merge(mergeable, age_us)
        times_us: list[int] = merged_by.tolist()
        return times_us

    def members(self, row: int) -> list[int]:
        """Return the original rows that were merged into row ``row``, as positions among all rows of the batches."""
        if not self._origin_list:
            self._origin_list = self.origins.tolist()
        origin = self._origin_list[row]
        if self._groups is not None:
            rows, starts = self._groups
            if self._group_of is None:
                self._group_of = dict(zip(rows[starts].tolist(), range(len(starts)), strict=True))
            group = self._group_of.get(origin)
            if group is not None:
                end = starts[group + 1] if group + 1 < len(starts) else None
                found: list[int] = rows[starts[group] : end].tolist()
                return found
        return [origin]

    def _mergeable(self) -> NDArray[np.bool_]:
        """Return a boolean array of shape (n,) that says which of the n rows are events without an id."""
        events: NDArray[np.bool_] = self.type_codes != COUNTERS_ROW
        return events if self.ids is None else events & np.array([packed == NONE for packed in self.ids], bool)

    def _merge(self, mergeable: NDArray[np.bool_], age_us: Ints) -> None:
        """Merge all mergeable rows with the same video, age bin and type into the first of these rows.

        That row gets the sums and the latest time. The ages of mergeable rows must not be negative.
        """
        rows = np.flatnonzero(mergeable)
        cells = self.video_codes[rows] * N_BINS + bin_index(age_us[rows])
        cells = cells * TYPE_CODES + self.type_codes[rows]
        by_cell = np.argsort(cells, kind="stable")
        rows, cells = rows[by_cell], cells[by_cell]
        starts = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))
        if self.counts is None:
            self.counts = np.full(len(mergeable), COUNT.default, np.int64)
        fits = np.ones(len(starts), bool)
        for column in (self.counts, self.reaches):
            if column is not None:
                fits &= np.add.reduceat(column[rows].astype(float), starts) < _EXACT
        firsts = rows[starts][fits]
        for column, combined in ((self.counts, np.add), (self.reaches, np.add), (self.times_us, np.maximum)):
            if column is not None:
                column[firsts] = combined.reduceat(column[rows], starts)[fits]
        # A group of rows is not merged if its sum is too large. Each of its rows then starts a group of its own.
        begins = np.repeat(~fits, np.diff(np.append(starts, len(rows))))
        begins[starts] = True
        self._groups = self.origins[rows], np.flatnonzero(begins)
        kept = np.ones(len(mergeable), bool)
        kept[rows[~begins]] = False
        self._keep(np.flatnonzero(kept))

    def _keep(self, rows: Ints) -> None:
        self.origins, self.video_codes = self.origins[rows], self.video_codes[rows]
        self.times_us, self.type_codes = self.times_us[rows], self.type_codes[rows]
        self.counts = None if self.counts is None else self.counts[rows]
        self.reaches = None if self.reaches is None else self.reaches[rows]
        self._origin_list = []
        chosen = rows.tolist()
        self.ids = None if self.ids is None else [self.ids[i] for i in chosen]
        self.cells = None if self.cells is None else [self.cells[i] for i in chosen]


def _ordered_numbers(columns: Sequence[Ints | None], sizes: Sequence[int], default: int, order: Ints) -> Ints | None:
    joined = joined_numbers(columns, sizes, default)
    return None if joined is None else joined[order]


def _ordered_lists(columns: Sequence[list[T] | None], sizes: Sequence[int], default: T, order: Ints) -> list[T] | None:
    joined = joined_lists(columns, sizes, default)
    return None if joined is None else [joined[i] for i in order.tolist()]
