"""Settings of forecast quality: which forecasts are scored, and whether intervals adapt to the scores."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from service.settings.group import SettingsGroup, split_list


class QualitySettings(SettingsGroup):
    """Which forecasts are kept and scored, when they are scored, and for how long scores are shown.

    A label is a forecast that is kept until its outcome is known, and is then scored.
    """

    labels: int = Field(100_000, ge=0, le=10_000_000)
    """Maximum number of labels in the event store, over all replicas. Each label takes about 0.4 KB. With 0, no forecast is
    kept or scored, and no interval adapts."""
    label_horizon_s: int = Field(7 * 86_400, ge=1, le=365 * 86_400)
    """Longest horizon, in seconds, of the forecasts that are kept."""
    label_horizons_s: Annotated[tuple[Annotated[int, Field(ge=1, le=365 * 86_400)], ...], NoDecode] = Field(
        (15, 300, 3600, 4 * 3600, 12 * 3600, 86_400, 2 * 86_400, 3 * 86_400, 7 * 86_400), min_length=1, max_length=64
    )
    """Horizons in seconds of the forecasts that are kept, separated by commas. Horizons beyond the bundle's longest horizon
    are left out."""
    label_forecasts: float = Field(5, gt=0, le=1000)
    """Maximum number of forecasts per second that the service makes in order to score them."""
    label_share: float = Field(0.5, gt=0, le=1)
    """Fraction of ``labels`` that the videos of one API key may use."""
    label_grace_s: int = Field(60, ge=0, le=86_400)
    """Time in seconds between a forecast's target time and its scoring. Rows that arrive during this time still count."""
    quality_days: int = Field(7, ge=1, le=90)
    """Number of days for which scores are shown."""
    adaptive: bool = True
    """Whether intervals adapt to the coverage of the scored forecasts."""

    @field_validator("label_horizons_s", mode="before")
    @classmethod
    def _split_horizons(cls, value: object) -> object:
        return split_list(value)
