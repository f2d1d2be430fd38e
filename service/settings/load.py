"""Settings of load: how many requests are handled at once and how many wait."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class LoadSettings(SettingsGroup):
    """Concurrency limits by kind of request. Streams, probes and metrics are not counted."""

    reads_in_flight: int = Field(24, ge=1, le=100_000)
    """Forecasts and other reads handled at once."""
    reads_waiting: int = Field(16, ge=0, le=100_000)
    """Reads that wait until one of those ends; further ones are refused with 503."""
    writes_in_flight: int = Field(8, ge=1, le=100_000)
    """Registrations and small batches of rows (up to 4 KB as sent) handled at once."""
    writes_waiting: int = Field(16, ge=0, le=100_000)
    """Such writes that wait; further ones are refused with 503."""
    bulk_in_flight: int = Field(64, ge=1, le=100_000)
    """Larger batches of rows handled at once: many, because batches that arrive together are stored in one group commit."""
    bulk_waiting: int = Field(64, ge=0, le=100_000)
    """Larger batches that wait; further ones are refused with 503."""
    wait_ms: int = Field(500, ge=1, le=60_000)
    """Milliseconds that a request waits before it is refused with 503."""
    client_share: float = Field(1.0, gt=0, le=1)
    """Part of these limits that one client (API key, or address without one) may use; a request over it gets 429."""
