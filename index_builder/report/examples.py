"""Chooses the example videos of a report. Forecasts each example video over all horizons and lists its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.bundles.forecast import histories
from index_builder.datasets.observed import Observed, snapshot_rows
from index_builder.samples.queries import Queries
from model.engagement.bins import HOUR_US
from model.engagement.rows import cells_at
from model.engagement.video import Video
from model.forecast import Request
from model.forecaster import Forecaster
from model.quantiles.head import HIGH, LOW, MEDIAN

EXAMPLES: Final = 12
_STEPS: Final = 16
"""Number of horizons of the forecast curve. Short horizons are closer together, because the curve bends there."""
_MAX_POINTS: Final = 80


@dataclass(frozen=True, slots=True, eq=False)
class Similar:
    """A neighbour of an example video, the target.

    ``video``: the neighbour, or None if the data set does not contain it.
    ``content`` and ``trajectory``: cosine similarities, or None if the vector is missing.
    ``growth``: factor by which the neighbour's count grew over ``horizon_us``, beginning at the target's age. None if
    no growth was known.
    ``horizon_us``: the longest horizon for which the neighbour's growth was known at the target's ``now``, or 0.
    """

    video: Video | None
    content: float | None
    trajectory: float | None
    growth: float | None
    horizon_us: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An example video at one time, with the video's forecast and outcome.

    ``age_us``: the video's age now.
    ``value_now``: the video's count now.
    ``seen`` and ``later`` (n, 2) float64: pairs of (age in microseconds, count), up to now and after now.
    ``horizons_us`` (H,) and ``quantiles`` (H, 3): the forecast for H horizons, at the quantiles 0.1, 0.5 and 0.9.
    ``growth``: factor by which the count really grew over the longest horizon.
    ``neighbours``: the neighbours that the forecast used.
    """

    video: Video
    age_us: int
    value_now: float
    seen: NDArray[np.float64]
    later: NDArray[np.float64]
    horizons_us: NDArray[np.int64]
    quantiles: NDArray[np.float64]
    growth: float
    neighbours: list[Similar]


def choose(queries: Queries, ids: list[str], n: int = EXAMPLES) -> NDArray[np.int64]:
    """Return the indices of up to n queries to show.

    For each video, only the query with the longest horizon is considered. Queries whose horizon is below the median
    of these horizons are dropped. The remaining queries are sorted by real growth, then by id, and chosen at evenly
    spaced ranks. ``ids`` are the video ids that ``queries.video`` indexes.
    """
    if not len(queries.video):
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((queries.now_us, -queries.horizon_us, queries.video))
    _, first = np.unique(queries.video[order], return_index=True)
    furthest = order[first]
    horizon = queries.horizon_us[furthest]
    furthest = furthest[horizon >= np.median(horizon)]
    names = np.array([ids[v] for v in queries.video[furthest]])
    ranked = furthest[np.lexsort((names, queries.pairs.growth[furthest]))]
    n = min(n, len(ranked))
    return ranked[((np.arange(n) + 0.5) / max(n, 1) * len(ranked)).astype(np.int64)]


def examples(
    forecaster: Forecaster, observed: Observed, queries: Queries, advance: Callable[[int], None] | None = None
) -> list[Example]:
    """Forecast the chosen queries and return them as examples."""
    data = observed.data
    by_id = {video.video_id: video for video in data.videos}
    rows = choose(queries, [video.video_id for video in data.videos])
    video, now = queries.video[rows], queries.now_us[rows]
    cells = cells_at(observed.events, observed.counters, video, now, data.published_us[video], len(data.types))
    share = (np.arange(1, _STEPS + 1) / _STEPS) ** 1.5
    out = []
    for i, history in enumerate(histories(cells, data.types, data.signal_cells_at(video, now))):
        row, target, longest = rows[i], data.videos[video[i]], int(queries.horizon_us[rows[i]])
        horizons = np.unique(np.maximum((share * longest).astype(np.int64), 1))
        asked = tuple(horizons.tolist())
        request = Request(target, history, int(now[i]), asked, metrics=(observed.name,))
        (answer,) = forecaster.forecast([request])
        before, after = _observed(observed, int(video[i]), int(now[i]), int(now[i]) + longest)
        similar = [
            Similar(by_id.get(n.video_id), n.content_similarity, n.trajectory_similarity, *_known(n.growth))
            for n in answer.neighbours
        ]
        out.append(
            Example(
                target,
                int(now[i]) - target.published_us,
                float(queries.pairs.value_now[row]),
                before,
                after,
                horizons,
                answer.quantiles[:, (LOW, MEDIAN, HIGH)],
                float(2 ** queries.pairs.growth[row]),
                similar,
            )
        )
        if advance:
            advance(1)
    return out


def _known(growth: dict[int, float | None]) -> tuple[float | None, int]:
    horizon_us = max((h for h, factor in growth.items() if factor is not None), default=0)
    return growth.get(horizon_us), horizon_us


def _observed(
    observed: Observed, video: int, now_us: int, until_us: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (age, count) up to now, and points (age, count) after now.

    The points are complete snapshots, or counts of events at even time steps.
    """
    published = int(observed.data.published_us[video])
    if observed.continuous:
        step = max((until_us - published) // _MAX_POINTS, 1)
        times = np.unique(np.append(np.arange(published, until_us, step), [now_us, until_us]))
    else:
        whole = snapshot_rows(observed.metric)
        inside = slice(*np.searchsorted(whole, observed.metric.offsets[[video, video + 1]]))
        times = observed.metric.time_us[whole[inside]]
        times = times[times <= until_us + HOUR_US]
    counts = observed.count_at(np.full(len(times), video), times)
    points = np.stack([times - published, counts], axis=1).astype(np.float64)
    past = times <= now_us
    return points[past], points[~past]
