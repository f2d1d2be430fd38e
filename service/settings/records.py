"""Settings that say what the event store keeps, and for how long."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class RecordSettings(SettingsGroup):
    """Event ids, parked rows, and the retention of videos.

    A row is parked if its video is not registered yet. The row is applied when the video is registered.
    """

    dedup_ttl_s: int = Field(48 * 3600, ge=3600, le=30 * 86400)
    """Minimum time in seconds for which an event id is remembered."""
    park_rows: int = Field(2000, ge=0, le=1_000_000)
    """Maximum number of rows parked for one unregistered video."""
    park_videos: int = Field(5000, ge=0, le=1_000_000)
    """Maximum number of unregistered videos with parked rows. The limit may be exceeded slightly when several services share a
    store."""
    park_share: float = Field(0.5, gt=0, le=1)
    """Fraction of ``park_videos`` that the rows of one API key may use. Without API keys, all requests count as one client, and this
    client may use the whole limit."""
    park_ttl_s: int = Field(24 * 3600, ge=60, le=30 * 86400)
    """Time in seconds for which parked rows wait for their video's registration. The time is counted from the last parked row."""
    retention_days: int = Field(0, ge=0, le=36_500)
    """Number of days after which an inactive video is deleted. The days are counted from the video's newest engagement or
    from its registration, whichever is later. The video's record, event ids, labels and positions in ranked lists are deleted. The
    video's entries in the bank stay. With 0, videos are kept forever."""
