"""Settings of what the event store keeps, and for how long."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class RecordSettings(SettingsGroup):
    """Event ids, parked rows, and the retention of videos."""

    dedup_ttl_s: int = Field(48 * 3600, ge=3600, le=30 * 86400)
    """Seconds for which an event id is remembered, at least."""
    park_rows: int = Field(2000, ge=0, le=1_000_000)
    """Limit of rows parked for one video that is not registered yet."""
    park_videos: int = Field(5000, ge=0, le=1_000_000)
    """Limit of unregistered videos with parked rows (a soft limit where several services share a store)."""
    park_share: float = Field(0.5, gt=0, le=1)
    """Part of ``park_videos`` that rows of one API key may use. Without keys all requests are one client, which may use all of it."""
    park_ttl_s: int = Field(24 * 3600, ge=60, le=30 * 86400)
    """Seconds for which parked rows wait for the registration, counted from the last row."""
    retention_days: int = Field(0, ge=0, le=36_500)
    """Days without an engagement (or since the registration, if there was none) after which a video's record is deleted, with its
    ids, labels and positions in lists. Its entries in the bank stay. 0 keeps videos forever."""
