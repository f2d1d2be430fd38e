"""Settings of quality: the forecasts that are scored, and the intervals that adapt to the scores."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from service.settings.group import SettingsGroup, split_list


class QualitySettings(SettingsGroup):
    """Which forecasts become labels, when they are scored, and for how long scores are shown."""

    labels: int = Field(100_000, ge=0, le=10_000_000)
    """Limit of forecasts kept in the event store until their outcome is known, over all replicas (about 0.4 KB each). 0 keeps none,
    scores none, and adapts nothing."""
    label_horizon_s: int = Field(7 * 86_400, ge=1, le=365 * 86_400)
    """Longest horizon of a forecast that is kept, in seconds."""
    label_horizons_s: Annotated[tuple[Annotated[int, Field(ge=1, le=365 * 86_400)], ...], NoDecode] = Field(
        (15, 300, 3600, 4 * 3600, 12 * 3600, 86_400, 2 * 86_400, 3 * 86_400, 7 * 86_400), min_length=1, max_length=64
    )
    """Horizons of those forecasts in seconds, separated by commas; those beyond the bundle's longest horizon are left out."""
    label_forecasts: float = Field(5, gt=0, le=1000)
    """Limit of forecasts a second that are made to be scored."""
    label_share: float = Field(0.5, gt=0, le=1)
    """Part of ``labels`` that the videos of one API key may use."""
    label_grace_s: int = Field(60, ge=0, le=86_400)
    """Seconds after its target time at which a forecast is scored, so that late rows are in."""
    quality_days: int = Field(7, ge=1, le=90)
    """Days over which scores are shown."""
    adaptive: bool = True
    """Whether intervals adapt to the coverage of the scored forecasts."""

    @field_validator("label_horizons_s", mode="before")
    @classmethod
    def _split_horizons(cls, value: object) -> object:
        return split_list(value)
