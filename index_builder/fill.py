"""Filling a bank: past videos with their vectors and curves, as observed up to a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index_builder.curves import Curves, curves
from index_builder.retrieval import usable_from
from index_builder.samples import Observed
from index_builder.sequences import cells_at
from model.bank import NEVER_US, Bank, BankVideo, Curve
from model.forecaster import Forecaster
from model.growth import age_bucket
from model.tokens import tokenize

_BATCH = 1000
_NEVER = np.iinfo(np.int64).max


def trajectory_cuts(of: Curves) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where trajectories are taken: (video, age bucket, age in us) of the first curve point in each age bucket, sorted by video.

    A point at age 0 has nothing to read and makes none.
    """
    valid = (np.arange(of.ages_us.shape[1])[None] < of.lengths[:, None]) & (of.ages_us > 0)
    bucket = np.where(valid, age_bucket(of.ages_us), -1)
    first = valid.copy()
    first[:, 1:] &= bucket[:, 1:] != bucket[:, :-1]
    video, point = np.nonzero(first)
    return video, bucket[video, point], of.ages_us[video, point]


def bank_members(seen: Observed, as_of_us: int, limit: int) -> NDArray[np.int64]:
    """The newest ``limit`` videos published by ``as_of_us``, oldest first."""
    end = int(np.searchsorted(seen.data.published_us, as_of_us, side="right"))
    return np.arange(max(0, end - limit), end)


def entries(
    forecaster: Forecaster, seen: Observed, as_of_us: int, limit: int, sentence: NDArray[np.float32] | None = None
) -> Iterator[list[BankVideo]]:
    """Bank entries in batches; ``sentence`` (V, 384) spares encoding texts again. Videos without a curve are left out."""
    data, types = seen.data, forecaster.manifest.types
    # The data set numbers its types by itself, and need not have all that the model knows.
    type_codes = np.array([types.index(kind) for kind in data.types], dtype=np.int64)
    until = data.watched_until_us(as_of_us)
    known = curves(seen.metric, seen.totals, data.published_us, until, continuous=seen.continuous)
    members = bank_members(seen, as_of_us, limit)
    members = members[known.lengths[members] > 0]
    cut_video, cut_bucket, cut_age = trajectory_cuts(known)
    cut_usable = usable_from(
        Curves(known.ages_us[cut_video], known.values[cut_video], known.lengths[cut_video]),
        data.published_us[cut_video],
        cut_age,
    )
    usable = usable_from(known, data.published_us, known.ages_us[:, 0])
    # A video's cuts come in order of age, so each goes on from the state of the one before.
    pool = forecaster.new_pool(1)
    for start in range(0, len(members), _BATCH):
        batch = members[start : start + _BATCH]
        videos = [data.videos[v] for v in batch]
        content = forecaster.content(videos, None if sentence is None else sentence[batch])
        cuts = np.arange(*np.searchsorted(cut_video, [batch[0], batch[-1] + 1]))
        cuts = cuts[(cut_usable[cuts] < _NEVER) & np.isin(cut_video[cuts], batch)]
        published = data.published_us[cut_video[cuts]]
        now = published + cut_age[cuts]
        cells = cells_at(seen.events, seen.counters, cut_video[cuts], now, published, len(data.types))
        tokens = tokenize(replace(cells, types=type_codes[cells.types]), published, now, len(types))
        some = tokens.offsets[1:] > tokens.offsets[:-1]
        vectors = forecaster.trajectory(pool.read([data.videos[v].video_id for v in cut_video[cuts]], tokens)[1])
        trajectories: dict[int, dict[int, tuple[NDArray[np.float32], int]]] = {}
        for i in np.flatnonzero(some).tolist():
            cut = cuts[i]
            trajectories.setdefault(int(cut_video[cut]), {})[int(cut_bucket[cut])] = (vectors[i], int(cut_usable[cut]))
        yield [
            BankVideo(
                video.video_id, video.published_us, video.category, video.creator_id, content[i], trajectories.get(int(v), {}),
                Curve(known.ages_us[v, : known.lengths[v]], known.values[v, : known.lengths[v]]), int(min(usable[v], NEVER_US)),
            )
            for i, (v, video) in enumerate(zip(batch.tolist(), videos, strict=True))
        ]  # fmt: skip


def fill(
    bank: Bank, forecaster: Forecaster, seen: Observed, as_of_us: int, *, limit: int,
    sentence: NDArray[np.float32] | None = None, advance: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Put every entry into ``bank`` and optimise it; ``advance`` is told how many more videos went in."""
    for batch in entries(forecaster, seen, as_of_us, limit, sentence):
        bank.upsert(batch)
        if advance:
            advance(len(batch))
    bank.optimize()
