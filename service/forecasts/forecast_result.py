"""What the engine returns."""

from __future__ import annotations

from dataclasses import dataclass

from model.forecast import Forecast
from service.store.snapshot import Snapshot


@dataclass(slots=True, eq=False)
class ForecastResult:
    """A forecast, the version of the model that made it, and the snapshot it was made from.

    ``as_of_bins``: the requested time lies before the newest row, so only bins that had ended by then were used. ``stale``: the
    store did not answer, and the snapshot is the one read last. ``json``: the encoded response, once it was needed.
    """

    snapshot: Snapshot
    forecast: Forecast
    model_version: str
    as_of_bins: bool
    stale: bool
    json: bytes | None = None
