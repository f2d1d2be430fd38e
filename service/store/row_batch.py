"""Rows by column: how batches travel from the parser to the store, without an object a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.store.event_ids import NONE, event_id, packed_ids
from service.store.row import Row

COUNTERS: Final = 255
"""Kind code of a row of counters, whose types and values are in ``cells``; other codes are places in ``names``."""


@dataclass(slots=True)
class Columns:
    """n validated rows; element i of every column belongs to row i.

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

    def __len__(self) -> int:
        return len(self.video_ids)

    @staticmethod
    def of(rows: Sequence[Row]) -> Columns:
        """The columns of row objects."""
        names: dict[str, int] = {}
        events = [row.mode == "events" for row in rows]
        kinds = [
            names.setdefault(row.cells[0][0], len(names)) if event else COUNTERS
            for row, event in zip(rows, events, strict=True)
        ]
        return Columns(
            names=tuple(names),
            video_ids=[row.video_id for row in rows],
            times_us=np.array([row.time_us for row in rows], np.int64),
            kinds=np.array(kinds, np.uint8),
            counts=np.array([row.cells[0][1] if e else 1 for row, e in zip(rows, events, strict=True)], np.int64),
            reaches=np.array([row.reach for row in rows], np.int64) if any(row.reach for row in rows) else None,
            ids=packed_ids(row.id for row in rows) if any(row.id is not None for row in rows) else None,
            cells=None if all(events) else [row.cells for row in rows],
            rows=rows,
        )

    def row(self, i: int) -> Row:
        """Row i as an object, without its id."""
        if self.rows is not None:
            return self.rows[i]
        time_us, kind = int(self.times_us[i]), int(self.kinds[i])
        if kind == COUNTERS:
            assert self.cells is not None
            return Row(i, self.video_ids[i], time_us, "counters", self.cells[i])
        count = 1 if self.counts is None else int(self.counts[i])
        reach = 0 if self.reaches is None else int(self.reaches[i])
        return Row(i, self.video_ids[i], time_us, "events", ((self.names[kind], count),), reach)

    def identify(self, request: str, first: int = 0) -> None:
        """Give each event without an id one made of its request's key and its place in the request.

        ``first`` is the place of the first of these rows, where they are a part of the request.
        """
        places = range(len(self)) if self.rows is None else [row.index for row in self.rows]
        ids = self.ids or [NONE] * len(self)
        free = [i for i, kind in enumerate(self.kinds.tolist()) if kind != COUNTERS and ids[i] == NONE]
        for i, one in zip(free, packed_ids(event_id(request, first + places[i]) for i in free), strict=True):
            ids[i] = one
        self.ids = ids

    def part(self, places: NDArray[np.int64]) -> Columns:
        """Only some of the rows; they remember their places in the request."""
        chosen: list[Any] = places.tolist()
        return Columns(
            names=self.names,
            video_ids=[self.video_ids[i] for i in chosen],
            times_us=self.times_us[places],
            kinds=self.kinds[places],
            counts=None if self.counts is None else self.counts[places],
            reaches=None if self.reaches is None else self.reaches[places],
            ids=None if self.ids is None else [self.ids[i] for i in chosen],
            cells=None if self.cells is None else [self.cells[i] for i in chosen],
            rows=[self.row(i) for i in chosen],
        )
