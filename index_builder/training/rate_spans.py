"""Finds the spans of time that rates are fitted to. Computes the forecast and the real growth in these spans.

Counters: a span is the time between two readings, or between publication and the first reading. At most GAPS_PER_VIDEO
spans of a video are drawn, evenly in log(age + 1 h). The forecaster forecasts at several times that are spread over the
span. Each forecast uses what was known at the span's start.

Events: spans start at ages that are drawn evenly in log(age + 1 h). The length of a span is 1/24 of the age, but at
least one hour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.bundles.forecast import histories
from index_builder.datasets.observed import Observed, snapshot_rows
from index_builder.training.rate_fit import Spans, fit
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.rows import VideoRows, cells_at, rows_until
from model.engagement.types import metric_types
from model.features.tokens import LOG_AGE_OFFSET_S
from model.forecast import Request
from model.forecaster import Forecaster
from model.rates import HOUR_S, RateInputs, Rates, in_next_hour, slope_horizon_s, waves

MAX_GAPS: Final = 8000
MAX_HOURS: Final = 6000
"""Maximum number of spans with events. Spans with counters take less time, and their maximum is ``MAX_GAPS``.

Each maximum applies to the training videos and to the holdout separately.
"""
GAPS_PER_VIDEO: Final = 16
"""Maximum number of spans of one video with counters. All spans of a video together are one observation of the fit."""
_TIMES_PER_SPAN: Final = 3
_AGES: Final = 12
"""Number of spans per video with events."""
_SPAN: Final = 24
_TIMED_US: Final = 6 * HOUR_US
"""Length of the longest span that gives information about the time of day."""
_YOUNGEST_US: Final = 60 * SECOND_US
_BATCH: Final = 256

Ints = NDArray[np.int64]


def rates_of(
    forecaster: Forecaster,
    observed: Observed,
    split_us: int,
    until_us: int,
    *,
    seed: int = 0,
    sentence: NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Rates]:
    """Fit the rates of each metric to the forecasts of a forecaster that learned from what was known at ``split_us``.

    The rates are fitted to spans before ``split_us`` and corrected by spans from ``split_us`` to ``until_us``. Pass
    ``sentence`` (V, 384) to avoid encoding the texts again. ``advance`` is called with the number of forecasts just
    made.
    """
    rng = np.random.default_rng(seed)
    max_age_us, limit = forecaster.manifest.schema.max_age_us, MAX_HOURS if observed.continuous else MAX_GAPS
    drawn = [spans(observed, *times, max_age_us, rng) for times in ((0, split_us), (split_us, until_us))]
    learned, held = (
        forecast_metrics(forecaster, observed, *_some(found, limit, rng), sentence=sentence, advance=advance)
        for found in drawn
    )
    return {
        metric: fit(spans, held[metric], metric_types(metric, observed.data.types)) for metric, spans in learned.items()
    }


def rate_forecasts(observed: Observed, held: float) -> int:
    """Return about how many forecasts ``rates_of`` makes, if the fraction ``held`` of the videos is the holdout."""
    if observed.continuous:
        spans_of_all, limit, times = _AGES * len(observed.data.videos), MAX_HOURS, 1
    else:
        readings = np.diff(np.searchsorted(snapshot_rows(observed.metric), observed.metric.offsets))
        spans_of_all, limit, times = int(np.minimum(readings, GAPS_PER_VIDEO).sum()), MAX_GAPS, _TIMES_PER_SPAN
    return times * sum(min(int(spans_of_all * share), limit) for share in (1 - held, held))


def _some(found: tuple[Ints, Ints, Ints], limit: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    rows = np.sort(rng.permutation(len(found[0]))[:limit])
    video, start, end = (column[rows] for column in found)
    return video, start, end


def spans(
    observed: Observed, from_us: int, until_us: int, max_age_us: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Return the video, start and end of N spans. Each array has shape (N,) and dtype int64.

    The spans are between ``from_us`` and ``until_us`` and start at an age up to ``max_age_us``.
    """
    published = observed.data.published_us
    if observed.continuous:
        low = np.maximum(from_us - published, _YOUNGEST_US)
        high = np.minimum(until_us - published - HOUR_US, max_age_us)
        video = np.flatnonzero(high > low).repeat(_AGES)
        share = (np.tile(np.arange(_AGES), len(video) // _AGES) + rng.random(len(video))) / _AGES
        # The starts are spaced evenly in log(age + 1 h). An early hour has much engagement, so few early hours are
        # enough. A late hour has little engagement, so many late hours are needed.
        first, last = low[video] + HOUR_US, high[video] + HOUR_US
        age = (np.exp(np.log(first) + share * np.log(last / first)) - HOUR_US).astype(np.int64)
        start = published[video] + age
        end = start + np.maximum(HOUR_US, age // _SPAN)
    else:
        rows = snapshot_rows(observed.metric)
        video = np.searchsorted(observed.metric.offsets, rows, side="right") - 1
        end = observed.metric.time_us[rows]
        same = np.diff(video, prepend=-1) == 0
        start = np.where(same, np.roll(end, 1), published[video])
    fine = (start >= from_us) & (end > start) & (end <= until_us) & (start - published[video] <= max_age_us)
    video, start, end = video[fine], start[fine], end[fine]
    if not observed.continuous:
        first, last = start - published[video] + HOUR_US, end - published[video] + HOUR_US
        some = _evenly(video, np.log(last / first), rng)
        video, start, end = video[some], start[some], end[some]
    return video, start, end


def _evenly(video: Ints, weight: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """Return the sorted indices of at most GAPS_PER_VIDEO rows of each video, drawn with probabilities proportional to ``weight``."""
    # The rows with the smallest of exponential times with these rates are such a draw (Efraimidis and Spirakis, 2006).
    order = np.lexsort((rng.exponential(size=len(video)) / weight, video))
    rank = np.arange(len(video)) - np.searchsorted(video[order], video[order])
    return np.sort(order[rank < GAPS_PER_VIDEO])


def forecast_spans(
    forecaster: Forecaster,
    observed: Observed,
    video: Ints,
    start_us: Ints,
    end_us: Ints,
    *,
    n_times: int | None = None,
    sentence: NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Spans:
    """Forecast the first metric of N spans; see ``forecast_metrics``."""
    first = forecaster.manifest.metric
    made = forecast_metrics(
        forecaster, observed, video, start_us, end_us, (first,), n_times=n_times, sentence=sentence, advance=advance
    )
    return made[first]


def forecast_metrics(
    forecaster: Forecaster,
    observed: Observed,
    video: Ints,
    start_us: Ints,
    end_us: Ints,
    metrics: tuple[str, ...] = (),
    *,
    n_times: int | None = None,
    sentence: NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Spans]:
    """Forecast ``metrics`` (default: all) of N spans. Return the expected and the real growth, by metric.

    There are ``n_times`` forecasts per span.

    A span is divided into segments of equal length in log(age + 1 minute). Each segment is forecast at one time. The
    time is chosen so that a rate proportional to 1 / age equals its mean over the segment. Without ``n_times``, spans
    of events are forecast only at their start. Then growth after the next hour is assumed to be spread evenly in log
    age.
    """
    data, types = observed.data, forecaster.manifest.types
    m = n_times or (1 if observed.continuous else _TIMES_PER_SPAN)
    max_horizon_us = forecaster.manifest.max_horizon_us
    n = len(video)
    at_start = observed.continuous and n_times is None
    published_us = data.published_us[video][:, None]
    now = start_us[:, None]
    hours = np.ones((n, 1))
    if not at_start:
        youngest, oldest = ((at[:, None] - published_us) / SECOND_US + LOG_AGE_OFFSET_S for at in (start_us, end_us))
        edges = youngest * (oldest / youngest) ** (np.arange(m + 1) / m)
        length = np.diff(edges, axis=1)
        middle = length / np.diff(np.log(edges), axis=1) - LOG_AGE_OFFSET_S
        now, hours = published_us + (middle * SECOND_US).astype(np.int64), length / HOUR_S
    age_s = (now - published_us) / SECOND_US
    slope_us = (slope_horizon_s(age_s, max_horizon_us / SECOND_US) * SECOND_US).astype(np.int64)
    hour_us = min(HOUR_US, max_horizon_us)
    metrics = metrics or forecaster.manifest.metrics
    counts, cold = np.zeros((n, len(types))), np.zeros(n, np.bool_)
    increments = {metric: np.zeros((n, m, 2)) for metric in metrics}
    value_now = {metric: np.zeros(n) for metric in metrics}
    served = {metric: np.full((n, m, len(types)), np.nan) for metric in metrics}
    pool = forecaster.new_pool(_BATCH)
    for first in range(0, n, _BATCH):
        part = slice(first, first + _BATCH)
        v = video[part]
        if sentence is not None:
            forecaster.content([data.videos[a] for a in v], sentence[v])
        cells = cells_at(observed.events, observed.counters, v, start_us[part], data.published_us[v], len(types))
        known = histories(cells, types, data.signal_cells_at(v, start_us[part]))
        for i in range(m):
            requests = [
                Request(data.videos[a], history, int(at), (hour_us, int(ahead)), metrics=metrics)
                for a, history, at, ahead in zip(v, known, now[part, i], slope_us[part, i], strict=True)
            ]
            found = forecaster.forecast_metrics(requests, pool=pool, explain=False)
            for metric in metrics:
                answers = [answer[metric] for answer in found]
                increments[metric][part, i] = [answer.mean - answer.value_now for answer in answers]
                served[metric][part, i] = [[answer.intensity.get(kind, np.nan) for kind in types] for answer in answers]
                value_now[metric][part] = [answer.value_now for answer in answers]
            if advance:
                advance(len(requests))
        cold[part] = [answer.cold_start for answer in answers]
        counts[part] = [[answer.counts.get(kind, 0) for kind in types] for answer in answers]
    span_s = (end_us - start_us)[:, None] / SECOND_US
    horizon_s = slope_us / SECOND_US
    wave = waves(now / SECOND_US, age_s, span_s if at_start else HOUR_S, horizon_s).reshape(n * m, -1)
    if at_start:
        hours = 1 / in_next_hour(hours, age_s, span_s)
    timed = (end_us - start_us <= _TIMED_US) | at_start
    grown = growth_of_spans(observed, video, start_us, end_us)
    out = {}
    for metric in metrics:
        each = RateInputs(
            age_s.ravel(),
            cold.repeat(m),
            in_next_hour(increments[metric][..., 1], age_s, horizon_s).ravel(),
            in_next_hour(increments[metric][..., 0], age_s, np.full_like(age_s, hour_us / SECOND_US)).ravel(),
            wave,
            value_now[metric].repeat(m),
            counts.repeat(m, axis=0),
        )
        out[metric] = Spans(video, hours, timed, each, served[metric], grown)
    return out


def growth_of_spans(observed: Observed, video: Ints, start_us: Ints, end_us: Ints) -> NDArray[np.float64]:
    """Return the growth (N, K) float64 of each type over N spans.

    The growth is NaN if the type's counter was not read at both ends of the span. A reading may be
    older than an end of the span by at most a tenth of the span. At publication every count is 0.
    """
    at_publication = start_us == observed.data.published_us[video]
    slack_us = (end_us - start_us) // 10
    out = np.full((len(video), len(observed.data.types)), np.nan)
    for kind, name in enumerate(observed.data.types):
        one = Observed.of(observed.data, name)
        known = np.ones(len(video), np.bool_)
        if not one.continuous:
            own = _of_type(one.metric, kind)
            first, last = (
                rows_until(own, video, at) > rows_until(own, video, at - slack_us - 1) for at in (start_us, end_us)
            )
            known = (first | at_publication) & last
        out[known, kind] = (one.count_at(video, end_us) - one.count_at(video, start_us))[known]
    return out


def _of_type(source: VideoRows, kind: int) -> VideoRows:
    rows = np.flatnonzero(source.type == kind)
    return replace(
        source,
        offsets=np.searchsorted(rows, source.offsets),
        time_us=source.time_us[rows],
        type=source.type[rows],
        value=source.value[rows],
        reach=source.reach[rows],
    )
