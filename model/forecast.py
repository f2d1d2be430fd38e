"""A forecast request and its result, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.engagement.history import History
from model.engagement.video import Video


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one video's forecast.

    Attributes:
        video: the video.
        history: the video's engagement up to ``now_us``. The history must not contain later engagement.
        now_us: time of the forecast.
        horizons_us: microseconds after ``now_us``, each in (0, max_horizon_us].
        client: owner of the video. Intervals may depend on the client's own outcomes (see ``Forecaster.adapt``).
        thresholds: counts > 0, ascending, whose probabilities of being passed are asked, for each metric.
        metrics: metrics of the bundle that are forecast, each once. Without any, the bundle's first metric is forecast.
    """

    video: Video
    history: History
    now_us: int
    horizons_us: tuple[int, ...]
    client: str = ""
    thresholds: tuple[float, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A similar past video.

    Attributes:
        video_id: id of the similar video.
        similarity: the combined similarity.
        content_similarity: cosine of the content vectors, or None if a vector is missing.
        trajectory_similarity: cosine of the trajectory vectors, or None if a vector is missing.
        growth: maps a horizon in microseconds to the factor by which the neighbour's count grew from the requested
            video's age on. The factor is None if it is not known yet.
    """

    video_id: str
    similarity: float
    content_similarity: float | None
    trajectory_similarity: float | None
    growth: dict[int, float | None]


@dataclass(frozen=True, slots=True)
class ThresholdForecast:
    """The probability that a count passes a threshold.

    Attributes:
        threshold: the threshold, a count.
        probabilities: (H,) float64, probability that the count is at least ``threshold`` at each horizon of the
            forecast. It never decreases with the horizon, and is 1 if the threshold is passed already.
        passed_by_us: maps each probability of ``model.quantiles.thresholds.CONFIDENCES`` to the time by which the
            threshold is passed with this probability: the time of the forecast if it is passed already, or None if
            this is later than the longest trained horizon.
    """

    threshold: float
    probabilities: NDArray[np.float64]
    passed_by_us: dict[float, int | None]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of one metric of one video.

    Attributes:
        now_us: time of the forecast.
        metric: the metric that is forecast.
        value_now: current count of the metric.
        counts: current counts by type.
        horizons_us: horizons of the forecasts.
        quantiles: (H, len(QUANTILES)) float64, cumulative counts of ``metric`` at the levels of
            ``model.quantiles.head.QUANTILES``, for each horizon.
        mean: (H,) float64, the cumulative count whose growth log2((1 + count) / (1 + present count)) is the expected
            growth, for each horizon. So it has the smallest expected squared error on the log scale. It is a geometric
            mean, and lies below the arithmetic mean of the possible counts.
        intensity: expected engagements in the next hour by type (see ``model.rates``): of all types for the bundle's
            first metric, and of its own types for a further metric, whose median it follows.
        neighbours: similar past videos.
        cold_start: whether nothing was known about the video's engagement.
        degraded: names of components that were not available.
        state_age_s: seconds since the newest engagement, or the video's age if there is none.
        extrapolated: names of the properties of the request that lie outside the training range (see
            ``Support.extrapolated``).
        thresholds: one entry for each threshold of the request.
    """

    now_us: int
    metric: str
    value_now: float
    counts: dict[str, int]
    horizons_us: tuple[int, ...]
    quantiles: NDArray[np.float64]
    mean: NDArray[np.float64]
    intensity: dict[str, float]
    neighbours: list[Neighbour]
    cold_start: bool
    degraded: list[str]
    state_age_s: float
    extrapolated: list[str] = field(default_factory=list)
    thresholds: list[ThresholdForecast] = field(default_factory=list)
