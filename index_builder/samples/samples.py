"""Draws training samples: cut points of videos, what was known at each cut point, and what happened later.

A sample is a pair (video, now). The labels of a sample are real later observations. A horizon has no label if its end
was not observed.

    counters    Cut points are at random snapshots, and at random times up to a day after some of these snapshots.
    events      Cut points are at random ages.

Each video has one additional early cut point: before the first snapshot for counters, or in the first hour for events.
Usually nothing is observed yet at this cut point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed, snapshot_rows
from model.cascade import Cascade, followers_of
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.rows import cells_at, rows_until
from model.engagement.signals import signal_cells_at
from model.engagement.types import metric_types
from model.features.shape import shape_bucket, shapes
from model.features.signals import N_SIGNAL, Signal, signal_features
from model.features.summary import summaries
from model.features.tokens import tokenize

_CHUNK_ROWS = 2_000_000
_AT_PUBLICATION = 0.4
"""Fraction of the cold cut points that are at the time of publication."""


@dataclass(frozen=True, slots=True)
class Samples:
    """N samples over the videos of one data set, sorted by video.

    ``video`` (N,) int64: index of the video.
    ``now_us`` (N,) int64: time of the cut point in microseconds since 1970 UTC.
    ``age_s`` (N,) float64: age of the video in seconds.
    ``value_now`` (N,) float64: the metric's count.
    ``cold`` (N,) bool: True if nothing is observed yet.
    ``position`` (N,) int64: number of completed tokens.
    ``pending`` (N,) bool: True if the newest age bin is still filling.
    ``branch`` (N, 2, F) float32 and ``branch_clock`` (N, 2, 2) float32: features and clock of two tokens. The first is
    the newest token. If ``pending``, this is the token of the bin that is still filling. The second is the read token
    (see ``model.features.tokens``).
    ``last`` (N, F) float32: features of the newest token, zeros if there is none.
    ``summary`` (N, n_summary) float32: summary features.
    ``shape`` (N, D) float32 and ``bucket`` (N,) int64: shape of the curve so far, and the index of its nominal age, or -1
    (see ``model.features.shape``). The shape is not centred.
    ``expected`` (N, N_GRID + 1) float32: growth that a cascade expects. The width is 0 without a cascade.
    ``cascade`` (N, N_CASCADE) float32: features of the cascade. The width is 0 without a cascade.
    ``signals`` (N, width) float32: features of the signals. The width is 0 if the schema declares none.
    ``horizon_s`` and ``growth`` (N, J) float64: J horizons in seconds, and the growth over each. Growth is NaN where
    there is no label.
    """

    video: NDArray[np.int64]
    now_us: NDArray[np.int64]
    age_s: NDArray[np.float64]
    value_now: NDArray[np.float64]
    cold: NDArray[np.bool_]
    position: NDArray[np.int64]
    pending: NDArray[np.bool_]
    branch: NDArray[np.float32]
    branch_clock: NDArray[np.float32]
    last: NDArray[np.float32]
    summary: NDArray[np.float32]
    shape: NDArray[np.float32]
    bucket: NDArray[np.int64]
    expected: NDArray[np.float32]
    cascade: NDArray[np.float32]
    signals: NDArray[np.float32]
    horizon_s: NDArray[np.float64]
    growth: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Samples:
        """Return the samples that ``rows`` selects."""
        return Samples(**{name: getattr(self, name)[rows] for name in self.__slots__})

    def without_inputs(self) -> Samples:
        """Return the samples without what only a network reads, which is most of their memory. That has the width 0."""
        n = len(self.video)
        wide = ("branch", "branch_clock", "last", "shape", "expected", "cascade", "signals")
        empty = {name: np.zeros((n, 0), np.float32) for name in wide}
        return replace(self, **empty)  # type: ignore[arg-type]


def _cut_times(
    observed: Observed, until_us: int, max_age_us: int, per_video: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    published = observed.data.published_us
    every = np.arange(len(published))
    if observed.continuous:
        room = np.minimum(until_us - published, max_age_us).astype(np.float64)
        low = np.log(60.0 * SECOND_US)
        share = rng.random((len(published), per_video))
        age = np.exp(low + share * np.maximum(np.log(np.maximum(room, 1.0)) - low, 0)[:, None])
        video, now = np.repeat(every, per_video), published.repeat(per_video) + age.astype(np.int64).ravel()
        first = np.full(len(published), 3600.0 * SECOND_US)
    else:
        rows = snapshot_rows(observed.metric)
        video = np.searchsorted(observed.metric.offsets, rows, side="right") - 1
        drawn = _draw(video, per_video, rng)
        rows, video = rows[drawn], video[drawn]
        now = observed.metric.time_us[rows]
        chosen = rng.random(len(rows)) < 0.25
        delay = np.exp(rng.uniform(np.log(0.1), np.log(24.0), len(rows))) * HOUR_US
        video, now = (
            np.concatenate([video, video[chosen]]),
            np.concatenate([now, now[chosen] + delay[chosen].astype(np.int64)]),
        )
        first = np.full(len(published), float(max_age_us))
        np.minimum.at(first, video, (now - published[video]).astype(np.float64))
    # Some cold cut points are at the time of publication itself, because most cold starts are forecast at this time.
    late = np.maximum(rng.random(len(published)) - _AT_PUBLICATION, 0.0) / (1 - _AT_PUBLICATION)
    cold = published + (first * late**2).astype(np.int64)
    video, now = np.concatenate([video, every]), np.concatenate([now, cold])
    fits = (now <= until_us) & (now - published[video] <= max_age_us)
    video, now = video[fits], now[fits]
    order = np.lexsort((now, video))
    return video[order], now[order]


def _draw(video: NDArray[np.int64], per_video: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the sorted indices of at most ``per_video`` rows of each video, drawn at random. ``video`` is sorted."""
    order = np.lexsort((rng.random(len(video)), video))
    rank = np.arange(len(video)) - np.searchsorted(video, video)
    return np.sort(order[rank < per_video])


def _labels(
    observed: Observed,
    video: NDArray[np.int64],
    now: NDArray[np.int64],
    until_us: int,
    max_horizon_us: int,
    n_labels: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    jitter = (np.arange(n_labels) + rng.random((len(video), n_labels))) / n_labels
    if observed.continuous:
        room = np.minimum(until_us - now, max_horizon_us)
        # The horizons are evenly spaced in log(1 + d / 1 h), so that growth within minutes is learned early.
        horizon = (HOUR_US * np.expm1(jitter * np.log1p(np.maximum(room, 0) / HOUR_US)[:, None])).astype(np.int64)
        valid = (room > 60 * SECOND_US)[:, None] & (horizon > 0)
        target = now[:, None] + horizon
        value = observed.count_at(video.repeat(n_labels), target.ravel()).reshape(target.shape)
        return horizon, np.where(valid, value, np.nan)
    rows = snapshot_rows(observed.metric)
    first = np.searchsorted(rows, rows_until(observed.metric, video, now))
    stop = np.searchsorted(rows, rows_until(observed.metric, video, np.minimum(now + max_horizon_us, until_us)))
    available = (stop - first)[:, None]
    index = np.where(available > n_labels, (jitter * available).astype(np.int64), np.arange(n_labels))
    valid = index < available
    row = rows[np.minimum(first[:, None] + index, max(len(rows) - 1, 0))] if len(rows) else np.zeros_like(index)
    horizon = np.where(valid, observed.metric.time_us[row] - now[:, None], 0)
    return horizon, np.where(valid & (horizon > 0), observed.totals[row].astype(np.float64), np.nan)


def _signals(
    observed: Observed,
    signals: Sequence[Signal],
    video: NDArray[np.int64],
    now: NDArray[np.int64],
    published: NDArray[np.int64],
    age_s: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the features of the signals. A signal without any reading in the data set is masked."""
    parts = [np.zeros((len(video), 0), np.float32)]
    for signal in signals:
        rows = observed.data.signals.get(signal.name)
        if rows is None:
            parts.append(np.zeros((len(video), N_SIGNAL), np.float32))
        else:
            parts.append(signal_features(signal, signal_cells_at(rows, video, now, published), age_s))
    return np.concatenate(parts, axis=1)


def read_samples(
    observed: Observed,
    video: NDArray[np.int64],
    now: NDArray[np.int64],
    *,
    horizon_us: NDArray[np.int64],
    value: NDArray[np.float64],
    cascade: Cascade | None = None,
    signals: Sequence[Signal] = (),
    shape_of: str | None = None,
) -> Samples:
    """Read samples at given pairs of (video, now), sorted by video.

    The labels are ``value`` at ``horizon_us``. Both have shape (N, J), and ``value`` is NaN where there is no label.
    With a fitted ``cascade``, the samples include the growth that the cascade expects. With ``signals``, they include
    the features of these signals. ``shape_of`` is the metric whose shapes are read, by default that of ``observed``.
    """
    data = observed.data
    published = data.published_us[video]
    n_types = len(data.types)
    metric = metric_types(observed.name, data.types)
    shape_types = metric_types(shape_of or observed.name, data.types)
    followers = followers_of(data.videos)
    sizes = (rows_until(observed.events, video, now) - observed.events.offsets[video]) + (
        rows_until(observed.counters, video, now) - observed.counters.offsets[video]
    )
    chunk = np.cumsum(sizes) // _CHUNK_ROWS
    parts: list[tuple[NDArray[np.generic], ...]] = []
    for part in range(int(chunk[-1]) + 1 if len(chunk) else 0):
        at = np.flatnonzero(chunk == part)
        tokens = tokenize(
            cells_at(observed.events, observed.counters, video[at], now[at], published[at], n_types),
            published[at],
            now[at],
            n_types,
        )
        ends = tokens.offsets[1:]
        some = ends > tokens.offsets[:-1]
        newest = np.maximum(ends - 1, 0)
        has_tokens = len(tokens.features) > 0
        last = (
            np.where(some[:, None], tokens.features[newest], 0) if has_tokens else np.zeros_like(tokens.read_features)
        )
        last_clock = (
            np.where(some[:, None], tokens.clock[newest], 0) if has_tokens else np.zeros_like(tokens.read_clock)
        )
        age_s = (now[at] - published[at]) / SECOND_US
        bucket = shape_bucket(tokens.known_until_s)
        expected, numbers = np.zeros((len(at), 0), np.float32), np.zeros((len(at), 0), np.float32)
        if cascade is not None:
            expected, process = cascade.growth(tokens, age_s, metric, followers[video[at]], published[at] / SECOND_US)
            numbers = cascade.features(expected, process)
        parts.append(
            (
                ends - tokens.offsets[:-1] - tokens.pending,
                tokens.pending,
                np.stack([last, tokens.read_features], 1),
                np.stack([last_clock, tokens.read_clock], 1),
                last.astype(np.float32),
                tokens.cold,
                summaries(tokens, age_s, metric),
                shapes(tokens, np.arange(len(at)), bucket, shape_types),
                bucket,
                expected,
                numbers,
                _signals(observed, signals, video[at], now[at], published[at], age_s),
            )
        )
    position, pending, branch, branch_clock, last, cold, summary, shape, bucket, expected, numbers, read_signals = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    value_now = observed.count_at(video, now)
    growth = np.maximum(np.log2((1 + value) / (1 + value_now[:, None])), 0.0)
    return Samples(
        video,
        now,
        (now - published) / SECOND_US,
        value_now,
        cold,
        position,
        pending,
        branch.astype(np.float32),
        branch_clock.astype(np.float32),
        last,
        summary,
        shape,
        bucket,
        expected,
        numbers,
        read_signals,
        horizon_us / SECOND_US,
        growth,
    )


def draw_samples(
    observed: Observed,
    *,
    until_us: int,
    max_age_us: int,
    max_horizon_us: int,
    n_labels: int,
    cuts_per_video: int,
    seed: int,
    cascade: Cascade | None = None,
    signals: Sequence[Signal] = (),
    shape_of: str | None = None,
) -> Samples:
    """Draw training samples from rows and labels up to ``until_us``. Samples without a label are left out.

    ``shape_of`` is the metric whose shapes are read. By default, it is that of ``observed``.
    """
    rng = np.random.default_rng(seed)
    video, now = _cut_times(observed, until_us, max_age_us, cuts_per_video, rng)
    horizon, value = _labels(observed, video, now, until_us, max_horizon_us, n_labels, rng)
    some = np.isfinite(value).any(1)
    return read_samples(
        observed,
        video[some],
        now[some],
        horizon_us=horizon[some],
        value=value[some],
        cascade=cascade,
        signals=signals,
        shape_of=shape_of,
    )
