"""Content-only retrieval, as in MMRA: forecasts a video by the mean growth of past videos with similar content.

The candidates for a query are videos that were published before the query's video. For each candidate, the growth from
the query's age over the query's horizon must have been observed by the query's ``now``. The neighbours are the K
candidates whose content vectors are most similar to the content vector of the query's video, by cosine similarity. The
forecast is the weighted mean of the neighbours' growth. The weights are the softmax of the cosine similarities.

The method reads the age of the query's video but no engagement of this video. So the scores of the method show how much
can be forecast from content alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.neighbours.past_neighbours import unit
from index_builder.samples.queries import Queries
from index_builder.samples.text_encoding import WORTH_A_PROCESS, sentences
from model.content.text import text_of
from model.features.creator import known_points
from model.forecaster import Forecaster
from model.growth.curve_kernels import curve_growth
from model.growth.curves import FAR_FUTURE_US, curves

NEIGHBOURS: Final = 10
_SPARE: Final = 30
"""Number of candidates in addition to the K neighbours.

The additional candidates replace candidates whose growth cannot be read between their observations.
"""
_BLOCK: Final = 256
_CHUNK: Final = 500


def has_text(observed: Observed) -> bool:
    """Return whether any video has text."""
    return any(text_of(video) for video in observed.data.videos)


def content_vectors(forecaster: Forecaster, observed: Observed, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return content vectors (V, content_dim) float32 for all V videos of the data set.

    ``rows`` are the indices of some videos. The vectors of these videos have unit length, and all other vectors are
    zero.
    """
    videos = observed.data.videos
    chunks = [[videos[v] for v in rows[i : i + _CHUNK]] for i in range(0, len(rows), _CHUNK)]
    if len(rows) < WORTH_A_PROCESS:
        parts = [forecaster.content(chunk) for chunk in chunks]
    else:
        parts = [forecaster.content(chunk, s) for chunk, s in zip(chunks, sentences(chunks), strict=True)]
    found = np.concatenate(parts)
    out = np.zeros((len(videos), found.shape[1]), np.float32)
    out[rows] = unit(found)
    return out


@numba.njit(cache=True)
def _weighted(  # type: ignore[no-untyped-def]
    nearest,
    cosine,
    now_us,
    age_us,
    horizon_us,
    k,
    published,
    ages,
    values,
    lengths,
    out,
):
    one, horizons = np.empty(2), np.empty(1, np.int64)
    for i in range(len(nearest)):
        total, weight, found = 0.0, 0.0, 0
        for j in range(nearest.shape[1]):
            v = nearest[i, j]
            if found == k or cosine[i, j] < -1.5:
                break
            n = known_points(ages[v], lengths[v], published[v], now_us[i])
            horizons[0] = horizon_us[i]
            curve_growth(ages[v], values[v], n, age_us[i], horizons, one)
            if not np.isnan(one[0]):
                total += np.exp(cosine[i, j]) * one[0]
                weight += np.exp(cosine[i, j])
                found += 1
        out[i] = total / weight if found else np.nan


def content_retrieval(
    forecaster: Forecaster,
    observed: Observed,
    queries: Queries,
    *,
    k: int = NEIGHBOURS,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the forecast growth (Q,) of Q >= 1 queries in log2 units.

    The forecast of a query is NaN if no candidate's growth was known by the query's ``now``.
    """
    published = observed.data.published_us
    known = curves(
        observed.metric, observed.totals, published, int(queries.now_us.max()), continuous=observed.continuous
    )
    last = known.ages_us[np.arange(len(published)), np.maximum(known.lengths - 1, 0)]
    first = np.where(known.lengths > 0, known.ages_us[:, 0], FAR_FUTURE_US)
    age_us = queries.now_us - published[queries.video]
    # The growth must be known at ``now``. So only videos that were published at least one horizon before the query's
    # video can be neighbours. Videos are sorted by time of publication.
    stop = np.searchsorted(published, published[queries.video] - queries.horizon_us, side="right")
    out = np.full(len(queries.video), np.nan)
    candidate = (first <= age_us.max()) & (last >= (age_us + queries.horizon_us).min())
    candidate[stop.max() :] = False
    content = content_vectors(forecaster, observed, np.union1d(np.flatnonzero(candidate), queries.video))
    order = np.lexsort((stop, queries.horizon_us // 3_600_000_000, age_us // 3_600_000_000))
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        # The ages of the queries in one block differ by hours at most. Videos that no query of the block can use are
        # left out of the matrix product.
        end = age_us[rows] + queries.horizon_us[rows]
        some = np.flatnonzero(
            (first[: stop[rows].max()] <= age_us[rows].max()) & (last[: stop[rows].max()] >= end.min())
        )
        if len(some):
            width = min(k + _SPARE, len(some))
            cosine = torch.from_numpy(content[queries.video[rows]]) @ torch.from_numpy(content[some]).T
            usable = (
                (some[None] < stop[rows, None])
                & (first[some][None] <= age_us[rows, None])
                & (last[some][None] >= end[:, None])
            )
            best = torch.topk(cosine.masked_fill_(torch.from_numpy(~usable), -2.0), width, dim=1)
            part = np.empty(len(rows))
            _weighted(
                some[best.indices.numpy()],
                best.values.numpy(),
                queries.now_us[rows],
                age_us[rows],
                queries.horizon_us[rows],
                k,
                published,
                known.ages_us,
                known.values,
                known.lengths,
                part,
            )
            out[rows] = part
        if advance:
            advance(len(rows))
    return out
