"""Refuses data that has no growth to learn from, before a training starts and not minutes into it."""

from __future__ import annotations

import numpy as np

from index_builder.datasets.observed import Observed, snapshot_rows
from model.errors import DataError


def require_growth(observed: Observed) -> None:
    """Check that the metric grows somewhere.

    Raises:
        DataError: it has no rows, every video is read only once, or no count changes after it was first read.
    """
    source, totals = observed.metric, observed.totals
    if not len(totals):
        raise DataError(f"metric: {observed.name!r} has no rows by the as-of time; there is nothing to learn from")
    if observed.continuous:
        video = np.repeat(np.arange(len(source.offsets) - 1), np.diff(source.offsets))
        if not np.any(source.time_us > observed.data.published_us[video]):
            raise DataError(
                f"{observed.name}: every event is at the time of publication; there is no growth to learn from. "
                "Needed: events with their own times, or counters read several times"
            )
        return
    rows = snapshot_rows(source)
    video = np.searchsorted(source.offsets, rows, side="right") - 1
    again = np.diff(video) == 0
    if not again.any():
        raise DataError(
            f"{observed.name}: each of {len(np.unique(video)):,} videos is read once; there is no growth to learn from. "
            "Needed: two or more readings of a video, at different ages"
        )
    if not np.any(np.diff(totals[rows])[again] > 0):
        raise DataError(
            f"{observed.name}: is the same at every reading of each video; there is no growth to learn from. "
            "Needed: readings between which counts grow"
        )
