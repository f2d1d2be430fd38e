"""One forecast that waits for its outcome."""

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
from model.quantiles.calibration import AGE_EDGES_H, COLD, calibration_column, calibration_row
from service.forecasts.forecast_result import ForecastResult

_STEPS_US: Final[tuple[int, ...]] = tuple(
    round(h * HOUR_US) for h in (*AGE_EDGES_H, *(AGE_EDGES_H[-1] * 2**k for k in range(1, 15)))
)
"""Ages at which steps end, up to some 300 years."""


class Label(msgspec.Struct, frozen=True, array_like=True):
    """A forecast of one video at one horizon; ``quantiles`` and ``counts`` are what was said and known then.

    ``row`` and ``column`` are the calibration's cell; ``counts`` cumulative, by type, of the types of the metric; ``quantiles`` counts at
    q0.1, q0.5, q0.9; ``stretch`` the adaptive factors that were in them; ``client`` whose video it is.
    """

    video_id: str
    model_version: str
    published_us: int
    now_us: int
    horizon_us: int
    row: int
    column: int
    metric: str
    counts: dict[str, int]
    value_now: float
    quantiles: tuple[float, float, float]
    stretch: tuple[float, float]
    client: str = ""

    @property
    def target_us(self) -> int:
        """When its outcome is there."""
        return self.now_us + self.horizon_us

    @property
    def key(self) -> str:
        """The same for every forecast of a video by a model at a horizon in one step of age; before its first row, ever."""
        step = -1 if self.row == COLD else age_step(self.now_us - self.published_us)
        parts = (self.video_id, self.model_version, self.horizon_us, step)
        return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=12).hexdigest()

    @property
    def key_until_us(self) -> int:
        """When the next forecast of this kind has another key."""
        return self.published_us + step_end_us(age_step(self.now_us - self.published_us))


def age_step(age_us: int) -> int:
    """Step of an age: the calibration's row, so that a video is one outcome in a cell; past those, one more each doubling."""
    return bisect.bisect_right(_STEPS_US, age_us)


def step_end_us(step: int) -> int:
    """Age at which a step ends."""
    return _STEPS_US[min(step, len(_STEPS_US) - 1)]


def metric_kinds(metric: str, kinds: Iterable[str]) -> list[str]:
    """Those of the engagement types ``kinds`` whose counts add up to the metric."""
    return [kind for kind in kinds if metric in (TOTAL, kind) or COUNTER_COLUMNS.get(metric) == kind]


def labels_of(answer: ForecastResult, factors: NDArray[np.float64] | None) -> Iterator[Label]:
    """The labels of an answer, one a horizon; ``factors`` is the adaptive stretch that is in it."""
    made, video = answer.forecast, answer.snapshot.video
    age_s = np.array([(made.now_us - video.published_us) / SECOND_US])
    row = int(calibration_row(age_s, np.array([made.cold_start]))[0])
    columns = calibration_column(np.array(made.horizons_us) / SECOND_US).tolist()
    counts = {kind: made.counts[kind] for kind in metric_kinds(made.metric, made.counts)}
    for horizon_us, column, quantiles in zip(made.horizons_us, columns, made.quantiles.tolist(), strict=True):
        low, high = (1.0, 1.0) if factors is None else factors[row, column].tolist()
        yield Label(
            video.video_id,
            answer.model_version,
            video.published_us,
            made.now_us,
            horizon_us,
            row,
            column,
            made.metric,
            counts,
            made.value_now,
            tuple(quantiles),
            (low, high),
            answer.snapshot.client,
        )
