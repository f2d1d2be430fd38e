"""A forecast request and its answer, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.engagement.history import History
from model.engagement.video import Video


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one video's forecast.

    ``history`` must hold nothing later than ``now_us``. Horizons are microseconds after now, each in (0, max_horizon_us]. ``client`` is
    the owner of the video: intervals may follow each client's own outcomes (see ``Forecaster.adapt``).
    """

    video: Video
    history: History
    now_us: int
    horizons_us: tuple[int, ...]
    client: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A similar past video.

    Similarities are cosines (None: no such vector). ``growth`` maps a horizon (us) to the factor by which its count grew from the same age
    on, None if that is not known yet.
    """

    video_id: str
    similarity: float
    content_similarity: float | None
    trajectory_similarity: float | None
    growth: dict[int, float | None]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of one video.

    ``quantiles`` (H, 3) float64 are cumulative counts of ``metric`` at q0.1, q0.5, q0.9 for each horizon; ``counts`` the current counts by
    type; ``intensity`` the expected engagements in the next hour by type (see ``model.rates``); ``state_age_s`` the seconds since the
    newest engagement, or the video's age if there is none; ``degraded`` names what was not available; ``extrapolated`` names what lies
    outside the training range (see ``Support.extrapolated``).
    """

    now_us: int
    metric: str
    value_now: float
    counts: dict[str, int]
    horizons_us: tuple[int, ...]
    quantiles: NDArray[np.float64]
    intensity: dict[str, float]
    neighbours: list[Neighbour]
    cold_start: bool
    degraded: list[str]
    state_age_s: float
    extrapolated: list[str] = field(default_factory=list)
