"""Batches of rows, stored as columns. So between the parser and the store, rows need no objects of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.store.rows.event_ids import NONE, event_id, packed_ids
from service.store.rows.row import InputRow
from service.store.rows.row_fields import COUNT, REACH

T = TypeVar("T")

TYPE_CODES: Final = 256
"""Number of different type codes."""
COUNTERS_ROW: Final = 255
"""Type code of a counters row. The row's types and values are in ``cells``. Any other code is an index into ``types``."""


@dataclass(slots=True)
class RowBatch:
    """A batch of n valid rows. Element i of every column belongs to row i.

    ``times_us``, ``counts`` and ``reaches``: int64 arrays of shape (n,).
    ``type_codes``: uint8 array of shape (n,).
    ``rows``: the batch's rows as objects, or None.
    ``indices``: the rows' positions in their request, ascending. If None, the positions are 0 .. n - 1.
    ``list_rejections``: if True, each refused row is listed. If False, refused rows are only counted.

    If one of the columns ``counts``, ``reaches``, ``ids`` and ``cells`` is None, every row has the field's default: count 1, reach 0,
    no id, or no cells.
    """

    types: tuple[str, ...]
    video_ids: list[str]
    times_us: NDArray[np.int64]
    type_codes: NDArray[np.uint8]
    counts: NDArray[np.int64] | None = None
    reaches: NDArray[np.int64] | None = None
    ids: list[bytes] | None = None
    cells: list[tuple[tuple[str, float], ...]] | None = None
    rows: Sequence[InputRow] | None = None
    indices: Sequence[int] | None = None
    list_rejections: bool = True

    def __len__(self) -> int:
        return len(self.video_ids)

    @staticmethod
    def of(rows: Sequence[InputRow]) -> RowBatch:
        """Convert row objects to columns."""
        types: dict[str, int] = {}
        events = [row.mode == "events" for row in rows]
        codes = [
            types.setdefault(row.cells[0][0], len(types)) if event else COUNTERS_ROW
            for row, event in zip(rows, events, strict=True)
        ]
        counts = [row.cells[0][1] if event else COUNT.default for row, event in zip(rows, events, strict=True)]
        reaches = [row.reach for row in rows]
        return RowBatch(
            types=tuple(types),
            video_ids=[row.video_id for row in rows],
            times_us=np.array([row.time_us for row in rows], np.int64),
            type_codes=np.array(codes, np.uint8),
            counts=np.array(counts, np.int64),
            reaches=np.array(reaches, np.int64) if any(reach != REACH.default for reach in reaches) else None,
            ids=packed_ids(row.id for row in rows) if any(row.id is not None for row in rows) else None,
            cells=None if all(events) else [row.cells for row in rows],
            rows=rows,
            indices=[row.index for row in rows],
        )

    @staticmethod
    def joined(parts: Sequence[RowBatch]) -> RowBatch:
        """Concatenate the rows of several batches, in order. If there are several, each must have ``indices``."""
        if len(parts) == 1:
            return parts[0]
        types: dict[str, int] = {}
        codes = [recoded(part, types) for part in parts]
        sizes = [len(part) for part in parts]
        return RowBatch(
            types=tuple(types),
            video_ids=[video_id for part in parts for video_id in part.video_ids],
            times_us=np.concatenate([part.times_us for part in parts]),
            type_codes=np.concatenate(codes),
            counts=joined_numbers([part.counts for part in parts], sizes, COUNT.default),
            reaches=joined_numbers([part.reaches for part in parts], sizes, REACH.default),
            ids=joined_lists([part.ids for part in parts], sizes, NONE),
            cells=joined_lists([part.cells for part in parts], sizes, ()),
            indices=[index for part in parts for index in (part.indices or range(len(part)))],
            list_rejections=all(part.list_rejections for part in parts),
        )

    def row(self, i: int) -> InputRow:
        """Return row i as an object. The object may lack the row's id."""
        if self.rows is not None:
            return self.rows[i]
        index = i if self.indices is None else self.indices[i]
        time_us, code = int(self.times_us[i]), int(self.type_codes[i])
        if code == COUNTERS_ROW:
            assert self.cells is not None
            return InputRow(index, self.video_ids[i], time_us, "counters", self.cells[i])
        count = COUNT.default if self.counts is None else int(self.counts[i])
        reach = REACH.default if self.reaches is None else int(self.reaches[i])
        return InputRow(index, self.video_ids[i], time_us, "events", ((self.types[code], count),), reach)

    def identify(self, request: str) -> None:
        """Give an id to each event without one.

        The id is made of the request's idempotency key and the event's position in the request.
        """
        indices = range(len(self)) if self.indices is None else self.indices
        ids = self.ids or [NONE] * len(self)
        without = [i for i, code in enumerate(self.type_codes.tolist()) if code != COUNTERS_ROW and ids[i] == NONE]
        for i, packed in zip(without, packed_ids(event_id(request, indices[i]) for i in without), strict=True):
            ids[i] = packed
        self.ids = ids

    def part(self, positions: NDArray[np.int64]) -> RowBatch:
        """Return a batch of only the rows at ``positions``. The rows keep their ``indices``."""
        chosen: list[Any] = positions.tolist()
        return RowBatch(
            types=self.types,
            video_ids=[self.video_ids[i] for i in chosen],
            times_us=self.times_us[positions],
            type_codes=self.type_codes[positions],
            counts=None if self.counts is None else self.counts[positions],
            reaches=None if self.reaches is None else self.reaches[positions],
            ids=None if self.ids is None else [self.ids[i] for i in chosen],
            cells=None if self.cells is None else [self.cells[i] for i in chosen],
            rows=None if self.rows is None else [self.rows[i] for i in chosen],
            indices=chosen if self.indices is None else [self.indices[i] for i in chosen],
            list_rejections=self.list_rejections,
        )


def recoded(part: RowBatch, types: dict[str, int]) -> NDArray[np.uint8]:
    """Convert a batch's type codes to indices into ``types``. Types that are not in ``types`` yet are added to it."""
    codes = [types.setdefault(name, len(types)) for name in part.types]
    if codes == list(range(len(codes))):
        return part.type_codes
    new_codes = np.full(TYPE_CODES, COUNTERS_ROW, np.uint8)
    new_codes[: len(codes)] = codes
    recoded: NDArray[np.uint8] = new_codes[part.type_codes]
    return recoded


def joined_numbers(
    columns: Sequence[NDArray[np.int64] | None], sizes: Sequence[int], default: int
) -> NDArray[np.int64] | None:
    """Concatenate one column over several batches. ``sizes`` holds the number of rows of each batch.

    A batch without the column contributes ``default`` for each row. The result is None if no batch has the column.
    """
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [np.full(n, default, np.int64) if column is None else column for column, n in zip(columns, sizes, strict=True)]
    )


def joined_lists(columns: Sequence[list[T] | None], sizes: Sequence[int], default: T) -> list[T] | None:
    """Concatenate one column over several batches, as ``joined_numbers`` does. Here the columns are lists."""
    if all(column is None for column in columns):
        return None
    flat: list[T] = []
    for column, n in zip(columns, sizes, strict=True):
        flat += [default] * n if column is None else column
    return flat
