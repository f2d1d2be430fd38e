"""Defines a label, which is a forecast whose outcome is not known yet."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.types import COUNTER_COLUMNS, TOTAL
from model.forecast import Forecast
from model.quantiles.calibration import AGE_EDGES_H, COLD, calibration_column, calibration_row
from model.quantiles.head import N_STEPS
from service.forecasts.forecast_result import ForecastResult

_STEPS_US: Final[tuple[int, ...]] = tuple(
    round(h * HOUR_US) for h in (*AGE_EDGES_H, *(AGE_EDGES_H[-1] * 2**k for k in range(1, 15)))
)
"""Ages in microseconds at which the age steps end, up to about 300 years."""


class Label(msgspec.Struct, frozen=True, array_like=True):
    """A forecast of one video at one horizon, with the counts known when the forecast was made.

    A label is stored as a JSON list of these fields, in this order.

    ``age_bucket`` and ``horizon_bucket``: indices of the calibration cell that the forecast belongs to.
    ``counts``: cumulative counts by engagement type, for the types that make up the metric.
    ``quantiles``: forecast counts at the levels of ``QUANTILES``.
    ``stretch``: adaptive factors of the distances of all quantiles but the median. The quantiles already include these factors.
    ``mean``: forecast mean, as a count.
    ``client``: name of the API key that registered the video.
    """

    video_id: str
    model_version: str
    published_us: int
    now_us: int
    horizon_us: int
    age_bucket: int
    horizon_bucket: int
    metric: str
    counts: dict[str, int]
    value_now: float
    quantiles: tuple[float, float, float, float, float, float, float]
    stretch: tuple[float, float, float, float, float, float]
    mean: float
    client: str = ""

    @property
    def target_us(self) -> int:
        """Time at which the video's count becomes the outcome."""
        return self.now_us + self.horizon_us

    @property
    def key(self) -> str:
        """Key that identifies the label.

        All forecasts of a video's metric by one model at one horizon within one age step have the same key. The time before the video's
        first row counts as a separate step.
        """
        step = -1 if self.age_bucket == COLD else age_step(self.now_us - self.published_us)
        parts = (self.video_id, self.model_version, self.metric, self.horizon_us, step)
        return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=12).hexdigest()

    @property
    def key_until_us(self) -> int:
        """Time from which a forecast with the same video, model, metric and horizon has a different key."""
        return self.published_us + step_end_us(age_step(self.now_us - self.published_us))


def age_step(age_us: int) -> int:
    """Return the number of the age step that an age belongs to.

    The first age steps are the calibration's age buckets, so that a video gives one outcome per calibration cell. Each later step ends at
    twice the age at which the previous step ends.
    """
    return bisect.bisect_right(_STEPS_US, age_us)


def step_end_us(step: int) -> int:
    """Return the age in microseconds at which an age step ends."""
    return _STEPS_US[min(step, len(_STEPS_US) - 1)]


def metric_kinds(metric: str, kinds: Iterable[str]) -> list[str]:
    """Return the engagement types among ``kinds`` whose counts add up to the metric."""
    return [kind for kind in kinds if metric in (TOTAL, kind) or COUNTER_COLUMNS.get(metric) == kind]


def labels_of(result: ForecastResult, forecast: Forecast, factors: NDArray[np.float64] | None) -> Iterator[Label]:
    """Yield one label per horizon of a forecast, which is one of those of ``result``.

    ``factors``: adaptive stretch factors that the forecast already includes, indexed by age bucket and horizon bucket. None if there are
    no such factors.
    """
    video = result.snapshot.video
    age_s = np.array([(forecast.now_us - video.published_us) / SECOND_US])
    age_bucket = int(calibration_row(age_s, np.array([forecast.cold_start]))[0])
    horizon_buckets = calibration_column(np.array(forecast.horizons_us) / SECOND_US).tolist()
    counts = {kind: forecast.counts[kind] for kind in metric_kinds(forecast.metric, forecast.counts)}
    for horizon_us, horizon_bucket, mean, quantiles in zip(
        forecast.horizons_us, horizon_buckets, forecast.mean.tolist(), forecast.quantiles.tolist(), strict=True
    ):
        stretch = [1.0] * N_STEPS if factors is None else factors[age_bucket, horizon_bucket].tolist()
        yield Label(
            video.video_id,
            result.model_version,
            video.published_us,
            forecast.now_us,
            horizon_us,
            age_bucket,
            horizon_bucket,
            forecast.metric,
            counts,
            forecast.value_now,
            tuple(quantiles),
            tuple(stretch),
            mean,
            result.snapshot.client,
        )
