"""Settings of models: bundles, device, caches, the shadow."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from service.settings.group import SettingsGroup


class ModelSettings(SettingsGroup):
    """Which models are loaded, where they run, and what is kept of them."""

    bundle: Path
    """Folder of the bundle to serve."""
    bundles: Path | None = None
    """Folder whose sub-folders are bundles that can be activated. The active version is kept in the event store, and all services
    that share it follow. None: only ``bundle``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    cache_videos: int = Field(4096, ge=1, le=10_000_000)
    """Videos whose model state and histogram are cached."""
    models_kept: int = Field(1, ge=0, le=16)
    """Earlier models kept in memory for a quick rollback (about 0.1 GB each)."""
    warm_videos: int = Field(1024, ge=0, le=10_000_000)
    """Most recently requested videos that a model forecasts before it becomes active."""
    shadow_share: float = Field(1.0, gt=0, le=1)
    """Part of the forecasts that a shadow model computes as well."""
    shadow_queue: int = Field(256, ge=1, le=1_000_000)
    """Limit of forecasts that wait for the shadow model; further ones are dropped."""
