"""What the engine gives."""

from __future__ import annotations

from dataclasses import dataclass

from model.forecast import Forecast
from service.store.snapshot import Snapshot


@dataclass(slots=True, eq=False)
class Answer:
    """A forecast, the version of the model that made it, and what it was made from.

    ``as_of_bins``: ``at`` lies before the newest row, so only bins that had ended by then were used. ``stale``: the
    store did not answer, and this is the video as it was last read. ``json``: the answer as it is sent, once it was.
    """

    snapshot: Snapshot
    forecast: Forecast
    model_version: str
    as_of_bins: bool
    stale: bool
    json: bytes | None = None
