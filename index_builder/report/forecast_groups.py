"""Forms the groups of forecasts that a report shows separately: by age, horizon, category and language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.queries import Queries
from model.engagement.video import Video

MIN_FORECASTS: Final = 50
"""Minimum number of forecasts in a group that is shown."""
_MAX_NAMES: Final = 12
AGES_H: Final = (0, 1, 3, 6, 12, 24, 48, 96, 168, 336, 720)
HORIZONS_H: Final = (0, 1, 3, 6, 12, 18, 36, 60, 96, 144, 336)
"""Limits of the groups in hours.

Horizons of 1, 2, 3, 5 and 7 days are in the middle of a group, because snapshots are often some hours off.
"""

Groups = dict[str, NDArray[np.bool_]]
"""Maps a group's label to flags (n,) bool of its rows."""


def by_hours(seconds: NDArray[np.float64], limits_h: Sequence[int]) -> Groups:
    """Group by a duration. Each group contains durations above one limit, up to and including the next limit."""
    hours = seconds / 3600
    edges = [*limits_h, np.inf]
    out: Groups = {}
    for low, high in pairwise(edges):
        rows = (hours > low if low else hours >= 0) & (hours <= high)
        if rows.sum() >= MIN_FORECASTS:
            out[f"above {low:g} h" if high == np.inf else f"{low:g} to {high:g} h"] = rows
    return out


def by_name(queries: Queries, videos: Sequence[Video], name: Callable[[Video], str | None]) -> Groups:
    """Group by a property of the video.

    Return one group per frequent value, one group for all other values, and one for unknown values.
    """
    which, inverse = np.unique(queries.video, return_inverse=True)
    values = np.array([name(videos[v]) or "" for v in which.tolist()], dtype=object)[inverse]
    counted = Counter(values.tolist())
    shown = [value for value, n in counted.most_common(_MAX_NAMES) if value and n >= MIN_FORECASTS]
    out: Groups = {value: values == value for value in shown}
    nothing = values == ""
    rest = ~nothing & ~np.isin(values, np.array([*shown], dtype=object)) if shown else ~nothing
    out |= {
        label: rows for label, rows in (("(all others)", rest), ("(unknown)", nothing)) if rows.sum() >= MIN_FORECASTS
    }
    return out
