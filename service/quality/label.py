"""One forecast that waits for its outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.bins import SECOND_US
from model.calibration import column_of, row_of
from model.types import COUNTER_COLUMNS, TOTAL
from service.forecasts.answer import Answer

_FIRST_AGE_US: Final = 900 * SECOND_US


class Label(msgspec.Struct, frozen=True, array_like=True):
    """A forecast of one video at one horizon; ``quantiles`` and ``counts`` are what was said and known then.

    ``row`` and ``column`` are the calibration's cell; ``counts`` cumulative, by type, of the types of the metric; ``quantiles`` counts at
    q0.1, q0.5, q0.9; ``stretch`` the adaptive factors that were in them.
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

    @property
    def target_us(self) -> int:
        """When its outcome is there."""
        return self.now_us + self.horizon_us

    @property
    def key(self) -> str:
        """The same for every forecast of a video by a model at a horizon, until the video's age has doubled."""
        parts = (self.video_id, self.model_version, self.horizon_us, age_doublings(self.now_us - self.published_us))
        return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=12).hexdigest()

    @property
    def key_until_us(self) -> int:
        """When the next forecast of this kind has another key."""
        return self.published_us + (_FIRST_AGE_US << age_doublings(self.now_us - self.published_us))


def age_doublings(age_us: int) -> int:
    """Bucket of an age: 0 below 15 minutes, then one more each doubling."""
    return (age_us // _FIRST_AGE_US).bit_length()


def metric_kinds(metric: str, kinds: Iterable[str]) -> list[str]:
    """Those of the engagement types ``kinds`` whose counts add up to the metric."""
    return [kind for kind in kinds if metric in (TOTAL, kind) or COUNTER_COLUMNS.get(metric) == kind]


def labels_of(answer: Answer, longest_us: int, factors: NDArray[np.float64] | None) -> Iterator[Label]:
    """The labels of an answer, one a horizon up to ``longest_us``; ``factors`` is the adaptive stretch that is in it."""
    made, video = answer.forecast, answer.snapshot.video
    age_s = np.array([(made.now_us - video.published_us) / SECOND_US])
    row = int(row_of(age_s, np.array([made.cold_start]))[0])
    columns = column_of(np.array(made.horizons_us) / SECOND_US).tolist()
    counts = {kind: made.counts[kind] for kind in metric_kinds(made.metric, made.counts)}
    for horizon_us, column, quantiles in zip(made.horizons_us, columns, made.quantiles.tolist(), strict=True):
        if horizon_us <= longest_us:
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
            )
