"""Rows by column: how batches travel from the parser to the store, without an object a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.store.event_ids import NONE, event_id, packed_ids
from service.store.row import Row

T = TypeVar("T")

KINDS: Final = 256
COUNTERS: Final = 255
"""Kind code of a row of counters, whose types and values are in ``cells``; other codes are places in ``names``."""


@dataclass(slots=True)
class RowBatch:
    """n validated rows; element i of every column belongs to row i.

    ``places``: the rows' places in their request, ascending; None: they are all of it, or its beginning. ``listed``: whether
    those that are refused are told one by one, or counted only.

    ``times_us`` and, where given, ``counts`` and ``reaches`` are (n,) int64, ``kinds`` (n,) uint8. ``counts`` None: all 1;
    ``reaches`` None: all 0; ``ids`` None: no row has one. ``rows`` are the rows themselves, where there are objects.
    """

    names: tuple[str, ...]
    video_ids: list[str]
    times_us: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    counts: NDArray[np.int64] | None = None
    reaches: NDArray[np.int64] | None = None
    ids: list[bytes] | None = None
    cells: list[tuple[tuple[str, int], ...]] | None = None
    rows: Sequence[Row] | None = None
    places: Sequence[int] | None = None
    listed: bool = True

    def __len__(self) -> int:
        return len(self.video_ids)

    @staticmethod
    def of(rows: Sequence[Row]) -> RowBatch:
        """The columns of row objects."""
        names: dict[str, int] = {}
        events = [row.mode == "events" for row in rows]
        kinds = [
            names.setdefault(row.cells[0][0], len(names)) if event else COUNTERS
            for row, event in zip(rows, events, strict=True)
        ]
        return RowBatch(
            names=tuple(names),
            video_ids=[row.video_id for row in rows],
            times_us=np.array([row.time_us for row in rows], np.int64),
            kinds=np.array(kinds, np.uint8),
            counts=np.array([row.cells[0][1] if e else 1 for row, e in zip(rows, events, strict=True)], np.int64),
            reaches=np.array([row.reach for row in rows], np.int64) if any(row.reach for row in rows) else None,
            ids=packed_ids(row.id for row in rows) if any(row.id is not None for row in rows) else None,
            cells=None if all(events) else [row.cells for row in rows],
            rows=rows,
            places=[row.index for row in rows],
        )

    @staticmethod
    def joined(parts: Sequence[RowBatch]) -> RowBatch:
        """The rows of all parts, which say their places, in their order."""
        if len(parts) == 1:
            return parts[0]
        names: dict[str, int] = {}
        kinds = [renamed(part, names) for part in parts]
        sizes = [len(part) for part in parts]
        return RowBatch(
            names=tuple(names),
            video_ids=[video_id for part in parts for video_id in part.video_ids],
            times_us=np.concatenate([part.times_us for part in parts]),
            kinds=np.concatenate(kinds),
            counts=filled([part.counts for part in parts], sizes, 1),
            reaches=filled([part.reaches for part in parts], sizes, 0),
            ids=listed([part.ids for part in parts], sizes, NONE),
            cells=listed([part.cells for part in parts], sizes, ()),
            places=[place for part in parts for place in (part.places or range(len(part)))],
            listed=all(part.listed for part in parts),
        )

    def row(self, i: int) -> Row:
        """Row i as an object, without its id."""
        if self.rows is not None:
            return self.rows[i]
        place = i if self.places is None else self.places[i]
        time_us, kind = int(self.times_us[i]), int(self.kinds[i])
        if kind == COUNTERS:
            assert self.cells is not None
            return Row(place, self.video_ids[i], time_us, "counters", self.cells[i])
        count = 1 if self.counts is None else int(self.counts[i])
        reach = 0 if self.reaches is None else int(self.reaches[i])
        return Row(place, self.video_ids[i], time_us, "events", ((self.names[kind], count),), reach)

    def identify(self, request: str) -> None:
        """Give each event without an id one made of its request's key and its place in the request."""
        places = range(len(self)) if self.places is None else self.places
        ids = self.ids or [NONE] * len(self)
        free = [i for i, kind in enumerate(self.kinds.tolist()) if kind != COUNTERS and ids[i] == NONE]
        for i, one in zip(free, packed_ids(event_id(request, places[i]) for i in free), strict=True):
            ids[i] = one
        self.ids = ids

    def part(self, places: NDArray[np.int64]) -> RowBatch:
        """Only some of the rows; they remember their places in the request."""
        chosen: list[Any] = places.tolist()
        return RowBatch(
            names=self.names,
            video_ids=[self.video_ids[i] for i in chosen],
            times_us=self.times_us[places],
            kinds=self.kinds[places],
            counts=None if self.counts is None else self.counts[places],
            reaches=None if self.reaches is None else self.reaches[places],
            ids=None if self.ids is None else [self.ids[i] for i in chosen],
            cells=None if self.cells is None else [self.cells[i] for i in chosen],
            rows=None if self.rows is None else [self.rows[i] for i in chosen],
            places=chosen if self.places is None else [self.places[i] for i in chosen],
            listed=self.listed,
        )


def renamed(part: RowBatch, names: dict[str, int]) -> NDArray[np.uint8]:
    """The kinds of rows whose types are looked up in ``names``, where those that are not there are added."""
    codes = [names.setdefault(name, len(names)) for name in part.names]
    if codes == list(range(len(codes))):
        return part.kinds
    table = np.full(KINDS, COUNTERS, np.uint8)
    table[: len(codes)] = codes
    kinds: NDArray[np.uint8] = table[part.kinds]
    return kinds


def filled(columns: Sequence[NDArray[np.int64] | None], sizes: Sequence[int], default: int) -> NDArray[np.int64] | None:
    """Columns of parts one after the other, ``default`` in those that have none; None where no part has one."""
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [np.full(n, default, np.int64) if column is None else column for column, n in zip(columns, sizes, strict=True)]
    )


def listed(columns: Sequence[list[T] | None], sizes: Sequence[int], default: T) -> list[T] | None:
    """``filled`` of lists."""
    if all(column is None for column in columns):
        return None
    flat: list[T] = []
    for column, n in zip(columns, sizes, strict=True):
        flat += [default] * n if column is None else column
    return flat
