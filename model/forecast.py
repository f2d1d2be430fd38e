"""The question and the answer as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.engagement.history import History
from model.engagement.video import Video


@dataclass(frozen=True, slots=True)
class Request:
    """One question. ``client`` says whose video it is: intervals may follow each client's own outcomes (see ``adapt``).

    ``history`` must hold nothing later than ``now_us``; horizons are microseconds after now, each in
    (0, max_horizon_us].
    """

    video: Video
    history: History
    now_us: int
    horizons_us: tuple[int, ...]
    client: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A past video like this one.

    Similarities are cosines (None: no such vector); ``growth`` maps a horizon (us) to the factor its count grew by
    from the same age on, None where not known yet.
    """

    video_id: str
    similarity: float
    content_similarity: float | None
    trajectory_similarity: float | None
    growth: dict[int, float | None]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The answer.

    ``quantiles`` (H, 3) float64, cumulative counts of ``metric`` at q0.1, q0.5, q0.9 of each horizon; ``counts`` now by type;
    ``intensity`` expected engagements of the next hour by type (see ``model.rates``); ``state_age_s`` seconds since
    the newest engagement, the video's age without any; ``degraded`` names what was missing.
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
