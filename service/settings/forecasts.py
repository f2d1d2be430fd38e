"""Settings of forecasts: deadline, cache, batches, limits of a request."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class ForecastSettings(SettingsGroup):
    """How forecasts are computed, and what one request may ask for."""

    request_deadline_ms: int = Field(10_000, ge=10, le=300_000)
    """Deadline of a forecast in milliseconds; a later one is 503."""
    forecast_reuse_ms: int = Field(5000, ge=0, le=60_000)
    """Milliseconds for which a cached forecast is served while its video has not changed (and no longer than a thousandth of the
    video's age). 0 computes every forecast."""
    batch_forecasts: int = Field(32, ge=1, le=1024)
    """Limit of forecasts computed together."""
    batch_wait_ms: float = Field(1, ge=0, le=1000)
    """Milliseconds that a forecast waits for others to share its batch."""
    queue_forecasts: int = Field(1024, ge=1, le=1_000_000)
    """Limit of forecasts that wait for the model; more are refused with 503."""
    max_batch_predictions: int = Field(256, ge=1, le=10_000)
    """Limit of predictions in one request."""
    max_horizons: int = Field(64, ge=1, le=1024)
    """Limit of horizons in one request."""
