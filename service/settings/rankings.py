"""Settings of the ranked lists of videos."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class RankingSettings(SettingsGroup):
    """By what videos are listed, and how the lists are kept current."""

    ranking_horizon_s: int = Field(86_400, ge=1, le=10 * 365 * 86_400)
    """Horizon of the forecasts that videos are listed by, in seconds; the bundle's longest horizon where that is shorter."""
    ranking_forecasts: int = Field(25, ge=0, le=10_000)
    """Limit of forecasts a second that keep the lists current; 0 leaves that to other replicas."""
    ranking_silent_s: float = Field(3 * 86_400, ge=1, le=365 * 86_400)
    """Seconds without an engagement after which a video is no longer listed as rising."""
    ranking_videos: int = Field(100_000, ge=1, le=100_000_000)
    """Limit of videos in each list; the lowest are dropped."""
