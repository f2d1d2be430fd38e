"""A canonical data set in memory: videos, and their rows as flat sorted arrays.

``index_builder.datasets.load`` reads data sets from files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import HOUR_US
from model.engagement.signals import SignalCells, SignalRows, signal_cells_at
from model.engagement.video import Video

SILENCE_US: Final = HOUR_US
"""Number of microseconds after its newest row for which a data set counts as observed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of all videos, sorted by (video, time). Rows of one video with equal times keep the order of the file.

    ``video`` (n,) int32: index into ``DataSet.videos``.
    ``time_us`` (n,) int64: time in microseconds since 1970 UTC.
    ``type`` (n,) int16: index into ``DataSet.types``.
    ``value`` (n,) int64: a count >= 1 for events, a cumulative counter >= 0 for counters.
    ``reach`` (n,) int64: the summed audience, 0 where unknown.
    ``offsets`` (V + 1,) int64: the rows of video v are ``offsets[v]:offsets[v + 1]``.
    """

    video: NDArray[np.int32]
    time_us: NDArray[np.int64]
    type: NDArray[np.int16]
    value: NDArray[np.int64]
    reach: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as known at one time.

    ``videos``: sorted by (published_us, video_id).
    ``published_us`` (V,) int64: times of publication.
    ``types``: the observed engagement types in the singular, the standard types first.
    ``events`` and ``counters``: None if the data set has no file of that kind.
    ``dropped``: maps "file: reason" to the number of dropped rows.
    ``first``: maps "file: reason" to a description of the first dropped row. Rows are numbered from 0.
    ``unread``: maps each further column that is not an attribute or signal to the reason.
    ``signals``: the readings of each signal, by name.
    """

    videos: list[Video]
    published_us: NDArray[np.int64]
    types: tuple[str, ...]
    events: Rows | None
    counters: Rows | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    signals: Mapping[str, SignalRows] = field(default_factory=dict)

    def signal_cells_at(self, video: NDArray[np.int64], now_us: NDArray[np.int64]) -> dict[str, SignalCells]:
        """Return the readings of each signal, by name, of n pairs of a video and a time, from the rows up to this time."""
        published = self.published_us[video]
        return {name: signal_cells_at(rows, video, now_us, published) for name, rows in self.signals.items()}

    def left_out(self) -> list[str]:
        """Describe the dropped rows, with one line per reason."""
        return [
            f"{reason}: {n:,} row{'s' if n > 1 else ''} left out, the first is {self.first[reason]}"
            for reason, n in self.dropped.items()
        ]

    def last_us(self) -> int | None:
        """Return the time of the newest row or publication in microseconds, or None if there are no videos."""
        ends = [int(rows.time_us.max()) for rows in (self.events, self.counters) if rows is not None and len(rows)]
        ends += [int(self.published_us[-1])] if len(self.videos) else []
        return max(ends, default=None)

    def watched_until_us(self, as_of_us: int) -> int:
        """Return the time up to which missing rows mean that there was no engagement.

        This time is ``as_of_us``, but at most SILENCE_US after the newest row.
        """
        last = self.last_us()
        return as_of_us if last is None else min(as_of_us, last + SILENCE_US)
