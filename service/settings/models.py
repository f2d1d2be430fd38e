"""Settings of models: bundles, the device, caches and the shadow model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from service.settings.group import SettingsGroup


class ModelSettings(SettingsGroup):
    """Which models are loaded, where they run, and what is cached for them.

    A bundle is a folder with a trained model and its data. A shadow model computes the active model's forecasts
    too, for comparison only.
    """

    bundle: Path
    """Folder of the bundle to serve."""
    bundles: Path | None = None
    """Folder whose sub-folders are bundles that can be activated. The event store records which bundle is active, and all services
    that share the store switch to that bundle. If None, only ``bundle`` can be used."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the model runs on."""
    cache_videos: int = Field(4096, ge=1, le=10_000_000)
    """Maximum number of videos whose model state and histogram are cached."""
    models_kept: int = Field(1, ge=0, le=16)
    """Number of earlier models kept in memory for a quick rollback. Each earlier model takes about 0.1 GB."""
    warm_videos: int = Field(1024, ge=0, le=10_000_000)
    """Number of videos that a model forecasts before it becomes active. The most recently requested videos are chosen."""
    shadow_share: float = Field(1.0, gt=0, le=1)
    """Fraction of the forecasts that a shadow model also computes."""
    shadow_queue: int = Field(256, ge=1, le=1_000_000)
    """Maximum number of forecasts that may wait for the shadow model. Further forecasts are dropped."""
