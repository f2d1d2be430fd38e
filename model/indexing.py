"""Converts observed videos to their entries in a bank. The service and the builder both use this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from model.bank.interface import NEVER_US, BankVideo, Curve
from model.engagement.rows import VideoRows, cells_at, metric_rows
from model.engagement.types import metric_types
from model.engagement.video import Video
from model.errors import DataError
from model.features.tokens import tokenize
from model.growth.curves import FAR_FUTURE_US, Curves, curves, trajectory_cuts, usable_from

if TYPE_CHECKING:
    from model.forecaster import Forecaster

BATCH: Final = 1000
"""Number of videos in one batch of entries."""


@dataclass(frozen=True, slots=True)
class ObservedVideos:
    """V videos and their rows.

    ``types`` (K,) holds the engagement type for each type index in the rows. ``published_us`` (V,) int64 holds the
    publication times.
    """

    videos: Sequence[Video]
    published_us: NDArray[np.int64]
    types: tuple[str, ...]
    events: VideoRows
    counters: VideoRows


def entries(
    forecaster: Forecaster,
    past: ObservedVideos,
    until_us: int,
    *,
    content: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    members: NDArray[np.int64] | None = None,
) -> Iterator[list[BankVideo]]:
    """Yield bank entries in batches, computed from rows up to ``until_us``. Videos without a curve are left out.

    Args:
        forecaster: computes the trajectory vectors.
        past: the observed videos.
        until_us: time up to which the rows are complete. Until then, a time without rows is a time without
            engagement.
        content: takes the indices of n videos and returns their content vectors (n, Dc).
        members: sorted indices of the videos that get entries. None means all.
    """
    types = forecaster.manifest.types
    # The type indices of the rows differ from those of the model, and the rows may lack types that the model knows.
    type_codes = np.array([types.index(kind) for kind in past.types], dtype=np.int64)
    n_types = len(past.types)
    kinds = metric_types(forecaster.manifest.metric, past.types)
    known = _curves(past, kinds, until_us)
    further = {
        metric: _curves(past, own, until_us)
        for metric in forecaster.manifest.metrics[1:]
        if (own := _types_or_none(metric, past.types))
    }
    if members is None:
        members = np.arange(len(past.videos))
    members = members[known.lengths[members] > 0]
    cut_video, cut_bucket, cut_age = trajectory_cuts(known)
    cut_usable = usable_from(
        Curves(known.ages_us[cut_video], known.values[cut_video], known.lengths[cut_video]),
        past.published_us[cut_video],
        cut_age,
    )
    usable = usable_from(known, past.published_us, known.ages_us[:, 0])
    for start in range(0, len(members), BATCH):
        batch = members[start : start + BATCH]
        videos = [past.videos[v] for v in batch]
        vectors = content(batch)
        cuts = np.arange(*np.searchsorted(cut_video, [batch[0], batch[-1] + 1]))
        cuts = cuts[(cut_usable[cuts] < FAR_FUTURE_US) & np.isin(cut_video[cuts], batch)]
        published = past.published_us[batch]
        now = np.maximum(published, until_us)
        cells = cells_at(past.events, past.counters, batch, now, published, n_types)
        tokens = tokenize(replace(cells, types=type_codes[cells.types]), published, now, len(types))
        vector = forecaster.trajectory(tokens, np.searchsorted(batch, cut_video[cuts]), cut_bucket[cuts])
        trajectories: dict[int, dict[int, tuple[NDArray[np.float32], int]]] = {}
        for i in np.flatnonzero(vector.any(1)).tolist():
            cut = cuts[i]
            trajectories.setdefault(int(cut_video[cut]), {})[int(cut_bucket[cut])] = (vector[i], int(cut_usable[cut]))
        yield [
            BankVideo(
                video.video_id,
                video.published_us,
                video.category,
                video.creator_id,
                vectors[i],
                trajectories.get(int(v), {}),
                _curve(known, v),
                int(min(usable[v], NEVER_US)),
                {metric: _curve(own, v) for metric, own in further.items() if own.lengths[v]},
            )
            for i, (v, video) in enumerate(zip(batch.tolist(), videos, strict=True))
        ]


def _curve(of: Curves, v: int) -> Curve:
    return Curve(of.ages_us[v, : of.lengths[v]], of.values[v, : of.lengths[v]])


def _curves(past: ObservedVideos, kinds: tuple[int, ...], until_us: int) -> Curves:
    source, totals, continuous = metric_rows(past.events, past.counters, kinds, len(past.types))
    return curves(source, totals, past.published_us, until_us, continuous=continuous)


def _types_or_none(metric: str, types: tuple[str, ...]) -> tuple[int, ...] | None:
    try:
        return metric_types(metric, types)
    except DataError:
        return None
