"""Settings of the ranked lists of videos."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class RankingSettings(SettingsGroup):
    """How videos are ranked, and how the lists are kept up to date."""

    ranking_horizon_s: int = Field(86_400, ge=1, le=10 * 365 * 86_400)
    """Horizon in seconds of the forecasts that videos are ranked by. If the bundle's longest horizon is shorter, that
    horizon is used instead."""
    ranking_forecasts: int = Field(25, ge=0, le=10_000)
    """Maximum number of forecasts per second that this replica makes to keep the ranked lists up to date. With 0, this replica leaves
    this work to other replicas."""
    ranking_silent_s: float = Field(3 * 86_400, ge=1, le=365 * 86_400)
    """Time in seconds without an engagement after which a video is removed from the list of rising videos."""
    ranking_videos: int = Field(100_000, ge=1, le=100_000_000)
    """Maximum number of videos in each list. If a list has more, its lowest-ranked videos are dropped."""
