"""Prepares cascades of events as inputs of a parametric Hawkes process.

A cascade consists of a video's counts and reach in age bins, up to a cut point in time. Queries ask for the growth
after the cut point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.datasets.observed import Observed
from index_builder.samples.queries import Queries
from model.cascade import bin_edges
from model.engagement.bins import SECOND_US
from model.engagement.rows import rows_until


@dataclass(frozen=True, slots=True)
class Cascades:
    """C cascades with the same age at their cut points, and Q queries about these cascades.

    ``edges`` (B + 1,): bounds of the B age bins in seconds. The first ``past`` bins are before the cut point.
    ``counts`` (C, past): count per cascade and bin.
    ``owner`` and ``bin`` (R,) int64: cascade and bin of each of the R data rows that ``counts`` sums up.
    ``reach`` (R,): logarithm of each row's mean reach.
    ``number`` (R,): count of each row.
    ``followers`` (C,): logarithm of the creator's followers.
    ``published_s`` (C,): time of publication in seconds since 1970 UTC.
    ``cascade`` (Q,) int64: cascade of each query.
    ``horizon_s`` (Q,): horizon in seconds.
    ``growth`` (Q,): growth in log2 units.
    ``value_now`` (Q,): count at the cut point.
    ``rows`` (Q,) int64: index of each query among the queries passed to ``cascades``.
    """

    edges: Tensor
    past: int
    counts: Tensor
    owner: Tensor
    bin: Tensor
    reach: Tensor
    number: Tensor
    followers: Tensor
    published_s: Tensor
    cascade: Tensor
    horizon_s: Tensor
    growth: Tensor
    value_now: Tensor
    rows: NDArray[np.int64]


def cascades(observed: Observed, queries: Queries, chunk: int) -> list[Cascades]:
    """Group the queries by age and by video, and return the groups. A group has up to ``chunk`` cascades.

    For each video, only rows up to the query's ``now`` are read.
    """
    ages, group = np.unique(queries.pairs.age_s, return_inverse=True)
    parts = []
    for g, age in enumerate(ages.tolist()):
        rows = np.flatnonzero(group == g)
        edges, past = bin_edges(age, float(queries.pairs.horizon_s[rows].max()))
        videos = np.unique(queries.video[rows])
        for start in range(0, len(videos), chunk):
            part = videos[start : start + chunk]
            parts.append(_read(observed, queries, rows[np.isin(queries.video[rows], part)], part, edges, past))
    return parts


def _read(
    observed: Observed,
    queries: Queries,
    mine: NDArray[np.int64],
    videos: NDArray[np.int64],
    edges: NDArray[np.float64],
    past: int,
) -> Cascades:
    source, published = observed.metric, observed.data.published_us
    now = published[videos] + round(float(edges[past]) * SECOND_US)
    starts, ends = source.offsets[videos], rows_until(source, videos, now)
    at = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)]).astype(np.int64)
    owner = np.repeat(np.arange(len(videos)), ends - starts)
    age = (source.time_us[at] - published[videos][owner]) / SECOND_US
    bin_index = np.clip(np.searchsorted(edges, age, side="left") - 1, 0, past - 1)
    before = np.where(at > starts[owner], observed.totals[np.maximum(at - 1, 0)], 0)
    number = (observed.totals[at] - before).astype(np.float64)
    reach = np.log1p(source.reach[at] / np.maximum(number, 1.0))
    counts = np.zeros((len(videos), past))
    np.add.at(counts, (owner, bin_index), number)
    pairs = queries.pairs
    return Cascades(
        torch.from_numpy(edges),
        past,
        torch.from_numpy(counts),
        torch.from_numpy(owner),
        torch.from_numpy(bin_index),
        torch.from_numpy(reach),
        torch.from_numpy(number),
        torch.tensor([math.log1p(observed.data.videos[v].creator_followers or 0.0) for v in videos.tolist()]).double(),
        torch.from_numpy(published[videos] / SECOND_US),
        torch.from_numpy(np.searchsorted(videos, queries.video[mine])),
        torch.from_numpy(pairs.horizon_s[mine]),
        torch.from_numpy(pairs.growth[mine]),
        torch.from_numpy(pairs.value_now[mine]),
        mine,
    )
