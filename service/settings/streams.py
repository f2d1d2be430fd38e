"""Settings of long connections: forecasts sent as they change, and rows over WebSockets."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class StreamSettings(SettingsGroup):
    """How often subscribers get a forecast, and how many long connections are open."""

    stream_interval_ms: int = Field(100, ge=0, le=60_000)
    """Milliseconds between two forecasts of a subscribed video, at least."""
    stream_refresh_s: float = Field(60, ge=0.05, le=86_400)
    """Seconds after which a subscribed forecast is recomputed even if its video has not changed: a forecast ages."""
    stream_subscribers: int = Field(2000, ge=0, le=1_000_000)
    """Limit of clients that subscribe to forecasts; more are refused with 503."""
    stream_producers: int = Field(256, ge=0, le=1_000_000)
    """Limit of WebSocket connections that bring rows; more are refused with 503."""
    stream_share: float = Field(0.5, gt=0, le=1)
    """Part of ``stream_subscribers`` and of ``stream_producers`` that one API key may use; more gets 429. Without keys all requests
    are one client, which may use all of it."""
    stream_window: int = Field(8, ge=1, le=1024)
    """Limit of frames of one WebSocket that are read and not answered yet; further ones wait in the network."""
