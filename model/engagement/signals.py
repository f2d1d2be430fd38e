"""Signals: readings of a video that are not engagement, such as its rank in a list, its heat or its number of countries.

A signal may rise and fall. The newest reading stands. Like engagement, readings are kept by the bin of the video's age:
each bin holds its newest reading, so order, batching and repetition of readings do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.attributes import MAX_NAME
from model.engagement.bins import EDGES_US
from model.engagement.history import History, Readings
from model.engagement.types import COUNTER_COLUMNS

MAX_SIGNALS: Final = 16
"""Maximum number of signals in one row, and of one data set."""
MAX_VALUE: Final = 1e15
"""Maximum absolute value of a reading."""
ALLOWED: Final = f"a number from -{MAX_VALUE:g} to {MAX_VALUE:g}"
ALLOWED_NAME: Final = (
    f"names of 1 to {MAX_NAME} characters other than {', '.join(COUNTER_COLUMNS)}, video_id, time and id"
)
_RESERVED: Final = frozenset((*COUNTER_COLUMNS, "video_id", "time", "id"))


def is_signal(name: object) -> bool:
    """Return whether a signal may have this name."""
    return isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name.strip().casefold() not in _RESERVED


@dataclass(frozen=True, slots=True)
class SignalRows:
    """Readings of one signal of V videos, sorted by (video, time, value).

    ``offsets`` (V + 1,) int64: start of each video's rows. ``time_us`` (n,) int64. ``value`` (n,) float64.
    """

    offsets: NDArray[np.int64]
    time_us: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SignalCells:
    """Readings of one signal by bin, for S sequences.

    ``offsets`` (S + 1,) int64, ``bins`` (n,) int64 and ``values`` (n,) float64.
    """

    offsets: NDArray[np.int64]
    bins: NDArray[np.int64]
    values: NDArray[np.float64]

    def readings(self) -> list[Readings]:
        """Return the readings of each sequence."""
        return [
            Readings(self.bins[start:stop], self.values[start:stop]) for start, stop in pairwise(self.offsets.tolist())
        ]


@numba.njit(cache=True, nogil=True)
def _newest_by_bin(starts, time_us, value, edges, video, now_us, published_us, offsets, bins, values):  # type: ignore[no-untyped-def]
    at = 0
    last = len(edges) - 2
    for s in range(len(video)):
        i, end = starts[video[s]], starts[video[s] + 1]
        first = at
        while i < end and time_us[i] <= now_us[s]:
            index = min(np.searchsorted(edges, time_us[i] - published_us[s], side="right") - 1, last)
            if at == first or bins[at - 1] != index:
                at += 1
            bins[at - 1] = index
            values[at - 1] = value[i]
            i += 1
        offsets[s + 1] = at
    return at


def signal_cells_at(
    rows: SignalRows, video: NDArray[np.int64], now_us: NDArray[np.int64], published_us: NDArray[np.int64]
) -> SignalCells:
    """Return the readings by bin of every pair (video, now), from the rows up to and including ``now``.

    ``published_us`` has one entry per pair.
    """
    size = int((rows.offsets[video + 1] - rows.offsets[video]).sum())
    offsets, bins, values = np.zeros(len(video) + 1, np.int64), np.zeros(size, np.int64), np.zeros(size)
    n = _newest_by_bin(
        rows.offsets, rows.time_us, rows.value, EDGES_US, video, now_us, published_us, offsets, bins, values
    )
    return SignalCells(offsets, bins[:n], values[:n])


def signal_cells_of(histories: Sequence[History], name: str) -> SignalCells:
    """Return the readings by bin of one signal of the histories."""
    found = [history.signals.get(name) for history in histories]
    sizes = [0 if readings is None else len(readings.bins) for readings in found]
    given = [readings for readings in found if readings is not None]
    return SignalCells(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int64), *(readings.bins for readings in given)]),
        np.concatenate([np.zeros(0), *(readings.values for readings in given)]),
    )
