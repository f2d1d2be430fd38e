"""Finds over which time each count of a token is known, so that a likelihood scores exactly what was observed.

A type that is fed by events is observed from publication on, in every bin. A type that is fed by counters is observed
from one reading to the next. A token may lack a reading of some type. Then this type is scored until its last reading
before the token, and again from its next reading on. So what is scored never depends on the counts.

A video is watched until the start of the bin that is still filling, but at most until the oldest age that a forecast
of the model reaches (``oldest_us``). After the last token, it is known that there was no
engagement until this time, or until the last reading of a counter. This silence is scored like the gap before a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from model.engagement.bins import EDGES_US, bin_index, bin_start_us
from model.engagement.cells import COUNTER_MODE, Cells
from model.engagement.rows import cells_at
from model.features.schema import Schema
from model.features.tokens import Tokens

BY_COUNTERS: Final = 0
BY_EVENTS: Final = 1
BY_BOTH: Final = 2
"""How a data set feeds a type. A type that is fed by both is not scored."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """The scored rows of S token sequences: the scored tokens of each sequence, followed by its silence.

    Attributes:
        offsets: (S + 1,) int64, start of each sequence in the m rows.
        token: (m,) int64, index of the row's token in ``Tokens``. It is -1 for silence.
        before: (m,) int64, index of the newest token before the row. It is -1 if there is none.
        previous_s: (m,) float64, age in seconds at the end of the token ``before``, or 0.
        bounds_s: (m, K, 3) float64, age in seconds at the start of the gap, the end of the gap, and the end of the
            interval, for each of K types. The bounds are NaN where a type is not scored. A silence is a gap with an
            interval of length 0.
        counts: (m, K) float64, counts of the interval.
        fed: (K,) int64, how each type is fed.
        cells: the cells that were read.
    """

    offsets: NDArray[np.int64]
    token: NDArray[np.int64]
    before: NDArray[np.int64]
    previous_s: NDArray[np.float64]
    bounds_s: NDArray[np.float64]
    counts: NDArray[np.float64]
    fed: NDArray[np.int64]
    cells: Cells

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Whether each row is scored for each type, (m, K) bool."""
        return np.isfinite(self.bounds_s[..., 0])

    @property
    def n_counts(self) -> int:
        """Number of scored counts: pairs of a token and a type."""
        return int(self.scored[self.token >= 0].sum())


def oldest_us(schema: Schema) -> int:
    """Return the oldest age in microseconds that a forecast of a training sample reaches."""
    return schema.max_age_us + schema.max_horizon_us


def feeding(observed: Observed) -> NDArray[np.int64]:
    """Return how the data set feeds each of its K types: BY_COUNTERS, BY_EVENTS or BY_BOTH, (K,) int64."""
    kinds = np.arange(len(observed.data.types))
    events, counters = np.isin(kinds, observed.events.type), np.isin(kinds, observed.counters.type)
    return np.where(events, np.where(counters, BY_BOTH, BY_EVENTS), BY_COUNTERS).astype(np.int64)


def exposure_of(
    observed: Observed,
    videos: NDArray[np.int64],
    tokens: Tokens,
    until_us: NDArray[np.int64] | int,
    max_age_us: int,
) -> Exposure:
    """Return the exposure of ``videos`` (S,) up to ``until_us``, an int or (S,) int64, and up to an age of ``max_age_us``.

    ``tokens`` are the tokens of the same videos, from rows up to ``until_us`` or later.
    """
    published = observed.data.published_us[videos]
    watched_us = bin_start_us(bin_index(np.clip(until_us - published, 0, max_age_us)))
    n_types = len(observed.data.types)
    cells = cells_at(observed.events, observed.counters, videos, published + watched_us - 1, published, n_types)
    return exposure(cells, tokens, watched_us.astype(np.float64) * 1e-6, feeding(observed))


def exposure(
    cells: Cells, tokens: Tokens, watched_s: NDArray[np.float64], fed: Sequence[int] | NDArray[np.int64]
) -> Exposure:
    """Return the exposure of S sequences that were watched until the ages ``watched_s`` (S,) in seconds.

    The ages are starts of bins. ``cells`` are known at these ages, ``tokens`` at these ages or later. ``fed`` (K,) says
    how each type is fed.
    """
    fed = np.asarray(fed, dtype=np.int64)
    n_types = tokens.counts.shape[1]
    owner = np.repeat(np.arange(len(watched_s)), np.diff(tokens.offsets))
    scored = np.bincount(owner[tokens.interval_s[:, 2] <= watched_s[owner]], minlength=len(watched_s))
    offsets = np.append(0, np.cumsum(scored + 1)).astype(np.int64)
    m = int(offsets[-1])
    sequence = np.repeat(np.arange(len(watched_s)), scored + 1)
    step = np.arange(m) - offsets[sequence]
    token = np.where(step < scored[sequence], tokens.offsets[sequence] + step, -1)
    before = np.where(step > 0, tokens.offsets[sequence] + step - 1, -1)
    previous_s, counts, bounds_s = np.zeros(m), np.zeros((m, n_types)), np.full((m, n_types, 3), np.nan)
    previous_s[before >= 0] = tokens.interval_s[before[before >= 0], 2]
    counts[token >= 0] = tokens.counts[token[token >= 0]]
    _fill_bounds(
        EDGES_US,
        cells.offsets,
        cells.bins,
        cells.types,
        cells.modes,
        tokens.offsets,
        scored,
        tokens.interval_s,
        fed,
        watched_s,
        offsets,
        bounds_s,
    )
    return Exposure(offsets, token, before, previous_s, bounds_s, counts, fed, cells)


@numba.njit(cache=True, nogil=True)
def _fill_bounds(  # type: ignore[no-untyped-def]
    edges, offsets, bins, types, modes, token_offsets, scored, interval_s, fed, watched_s, row_offsets, out
):
    n_types = len(fed)
    known = np.zeros(n_types)
    newest = np.zeros(n_types)
    older = np.zeros(n_types)
    read = np.zeros(n_types, dtype=np.bool_)
    for s in range(len(watched_s)):
        # ``known`` is the age from which a counter's readings are complete since the newest token. It is NaN if the
        # counter has no reading since then.
        known[:] = 0.0
        newest[:] = 0.0
        previous = 0.0
        at, row = token_offsets[s], row_offsets[s]
        last = at + scored[s]
        i = offsets[s]
        while i < offsets[s + 1]:
            index = bins[i]
            end = edges[index + 1] * 1e-6
            read[:] = False
            older[:] = newest
            while i < offsets[s + 1] and bins[i] == index:
                if modes[i] == COUNTER_MODE:
                    read[types[i]] = True
                    newest[types[i]] = end
                i += 1
            grew = at < last and interval_s[at, 2] == end
            for k in range(n_types):
                if grew and fed[k] == BY_EVENTS:
                    out[row, k, 0] = previous
                    out[row, k, 1] = max(edges[index] * 1e-6, previous)
                    out[row, k, 2] = end
                elif grew and fed[k] == BY_COUNTERS and not np.isnan(known[k]) and newest[k] > known[k]:
                    # Without a reading in this bin, only the readings before it are scored.
                    out[row, k, 0] = known[k]
                    out[row, k, 1] = older[k]
                    out[row, k, 2] = newest[k]
                if grew:
                    known[k] = end if read[k] else np.nan
                elif read[k] and np.isnan(known[k]):
                    known[k] = end
            if grew:
                previous = end
                at += 1
                row += 1
        for k in range(n_types):
            start, end = (previous, watched_s[s]) if fed[k] == BY_EVENTS else (known[k], newest[k])
            if fed[k] != BY_BOTH and end > start:
                out[row, k, 0] = start
                out[row, k, 1:] = end
