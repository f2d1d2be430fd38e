"""Settings of long-lived connections: streams that send forecasts as they change, and WebSockets that receive rows."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class StreamSettings(SettingsGroup):
    """How often subscribers get a forecast, and how many long-lived connections may be open."""

    stream_interval_ms: int = Field(100, ge=0, le=60_000)
    """Minimum time in milliseconds between two forecasts of a subscribed video."""
    stream_refresh_s: float = Field(60, ge=0.05, le=86_400)
    """Time in seconds after which a subscribed forecast is recomputed even if its video has not changed. A forecast depends on the
    current time, so it becomes outdated even without new rows."""
    stream_subscribers: int = Field(2000, ge=0, le=1_000_000)
    """Maximum number of clients that may subscribe to forecasts. Further clients are refused with 503."""
    stream_producers: int = Field(256, ge=0, le=1_000_000)
    """Maximum number of WebSocket connections that send rows. Further connections are refused with 503."""
    stream_share: float = Field(0.5, gt=0, le=1)
    """Fraction of ``stream_subscribers`` and of ``stream_producers`` that one API key may use. Connections beyond this fraction
    are refused with 429. Without API keys, all requests count as one client, and this client may use both limits fully."""
    stream_window: int = Field(8, ge=1, le=1024)
    """Maximum number of frames of one WebSocket that have been read but not answered. Further frames are not read until an answer
    is sent."""
