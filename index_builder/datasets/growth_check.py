"""Rejects data that has no growth to learn from.

The check runs before training starts, so that the error does not come minutes later.
"""

from __future__ import annotations

import numpy as np

from index_builder.datasets.observed import Observed, snapshot_rows
from model.errors import DataError


def require_growth(observed: Observed) -> None:
    """Check that the metric grows for at least one video.

    Raises:
        DataError: the metric has no rows, every video has only one reading, or no count changes after its first
            reading.
    """
    source, totals = observed.metric, observed.totals
    if not len(totals):
        raise DataError(f"metric: {observed.name!r} has no rows up to the as-of time; there is nothing to learn from")
    if observed.continuous:
        video = np.repeat(np.arange(len(source.offsets) - 1), np.diff(source.offsets))
        if not np.any(source.time_us > observed.data.published_us[video]):
            raise DataError(
                f"{observed.name}: every event is at the time of publication; there is no growth to learn from. "
                "Needed: events with their own times, or several readings of counters"
            )
        return
    rows = snapshot_rows(source)
    video = np.searchsorted(source.offsets, rows, side="right") - 1
    again = np.diff(video) == 0
    if not again.any():
        raise DataError(
            f"{observed.name}: each of {len(np.unique(video)):,} videos has only one reading; there is no growth to learn from. "
            "Needed: two or more readings of a video, at different ages"
        )
    if not np.any(np.diff(totals[rows])[again] > 0):
        raise DataError(
            f"{observed.name}: is the same at every reading of each video; there is no growth to learn from. "
            "Needed: readings between which counts grow"
        )
