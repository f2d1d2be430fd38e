"""Defines the result that the engine returns."""

from __future__ import annotations

from dataclasses import dataclass

from model.forecast import Forecast
from service.store.snapshot import Snapshot


@dataclass(slots=True, eq=False)
class ForecastResult:
    """A forecast, the version of the model that made it, and the snapshot that it was made from.

    ``forecast``: the forecast of the first requested metric.
    ``further``: the forecasts of the other requested metrics.
    ``as_of_bins``: the requested time is before the newest row. Therefore only bins that had ended at that time were used.
    ``stale``: the store did not answer. The snapshot is the last one that was read.
    ``json``: the encoded response, or None until the response is first needed.
    """

    snapshot: Snapshot
    forecast: Forecast
    model_version: str
    as_of_bins: bool
    stale: bool
    json: bytes | None = None
    further: tuple[Forecast, ...] = ()

    @property
    def forecasts(self) -> tuple[Forecast, ...]:
        """The forecasts of all requested metrics, in the order of the request."""
        return (self.forecast, *self.further)
