"""Histogram cells of many videos as flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.history import History

EVENT_MODE: Final = 1
"""Mode of a cell that holds increments."""
COUNTER_MODE: Final = 2
"""Mode of a cell that holds a cumulative total."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Histogram cells of S sequences, sorted by (sequence, bin, type).

    A sequence is one video as it was known at one time.

    Attributes:
        offsets: (S + 1,) int64, start of each sequence in the other arrays.
        bins: (n,) int64.
        types: (n,) int64.
        values: (n,) int64, increments or cumulative totals.
        modes: (n,) int64, mode of each cell: EVENT_MODE or COUNTER_MODE.
        reach: (n,) int64, summed audience of the accounts that acted in the cell's bin. All cells of a bin have the
            same reach.
    """

    offsets: NDArray[np.int64]
    bins: NDArray[np.int64]
    types: NDArray[np.int64]
    values: NDArray[np.int64]
    modes: NDArray[np.int64]
    reach: NDArray[np.int64]


def cells_of(histories: Sequence[History], types: Mapping[str, int]) -> Cells:
    """Flatten histories into cells. Engagement types that are not in ``types`` are left out."""
    columns: list[NDArray[np.int64]] = []
    offsets = [0]
    for history in histories:
        parts = [
            np.stack(
                [
                    series.bins,
                    np.full(len(series.bins), types[kind]),
                    series.values,
                    np.full(len(series.bins), EVENT_MODE if series.mode == "events" else COUNTER_MODE),
                ]
            )
            for kind, series in history.series.items()
            if kind in types and len(series.bins)
        ]
        if parts:
            rows = np.concatenate(parts, axis=1)
            rows = rows[:, np.lexsort((rows[1], rows[0]))]
            reach = np.array(
                [history.reach.get(b, 0) for b in rows[0].tolist()] if history.reach else [0] * rows.shape[1]
            )
            columns.append(np.concatenate([rows, reach[None].astype(np.int64)]))
            offsets.append(offsets[-1] + rows.shape[1])
        else:
            offsets.append(offsets[-1])
    flat = np.concatenate(columns, axis=1) if columns else np.zeros((5, 0), dtype=np.int64)
    bins, kinds, values, modes, reaches = (np.ascontiguousarray(column) for column in flat.astype(np.int64))
    return Cells(np.array(offsets, dtype=np.int64), bins, kinds, values, modes, reaches)
