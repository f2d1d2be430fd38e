"""Settings of forecasts: the deadline, the cache, batches, and limits on one request."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class ForecastSettings(SettingsGroup):
    """How forecasts are computed, and what one request may ask for."""

    request_deadline_ms: int = Field(10_000, ge=10, le=300_000)
    """Time limit in milliseconds for a forecast. If the forecast takes longer, the request gets 503."""
    forecast_reuse_ms: int = Field(5000, ge=0, le=60_000)
    """Maximum time in milliseconds for which a cached forecast is served while its video has not changed. A cached forecast is
    never served for longer than a thousandth of the video's age. With 0, every forecast is computed anew."""
    batch_forecasts: int = Field(32, ge=1, le=1024)
    """Maximum number of forecasts computed in one batch."""
    batch_wait_ms: float = Field(1, ge=0, le=1000)
    """Maximum time in milliseconds that a forecast waits for other forecasts to join its batch."""
    queue_forecasts: int = Field(1024, ge=1, le=1_000_000)
    """Maximum number of forecasts that may wait for the model. Further forecasts are refused with 503."""
    max_batch_predictions: int = Field(256, ge=1, le=10_000)
    """Maximum number of predictions in one request."""
    max_horizons: int = Field(64, ge=1, le=1024)
    """Maximum number of horizons in one request."""
