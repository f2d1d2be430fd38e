"""Builds the report of GET /quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from model.quantiles.adaptive import Adaptive
from model.quantiles.head import HIGH, LOW, MEDIAN, QUANTILES
from service.quality.label_store import LabelStore, parse_adaptive
from service.quality.scores import ScoreSums, age_name, horizon_name
from service.settings import QualitySettings

_STRETCHED: Final = tuple(str(level) for level in QUANTILES if level != QUANTILES[MEDIAN])
"""Levels of the quantiles that are stretched."""


class QualityReport:
    """Reports the scores of the last days by model, metric, horizon and age."""

    def __init__(self, label_store: LabelStore, settings: QualitySettings, clock: Callable[[], int]) -> None:
        self._label_store, self._clock = label_store, clock
        self._days, self._adaptive = settings.quality_days, settings.adaptive

    async def read(self, active: str, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the report. ``active`` is the version of the active model, and ``metrics`` are its metrics.

        Each model has an entry for each metric, the first metric first. Raises Unavailable if the store does not answer.
        """
        scores_by_model = await self._label_store.scores_by_model(self._clock())
        return {
            "model_version": active,
            "days": self._days,
            "adaptive": self._adaptive,
            "pending": await self._label_store.pending(),
            "models": [
                await self._model(version, metric, sums)
                for version, by_metric in scores_by_model.items()
                for metric, sums in by_metric.sorted(metrics)
            ],
        }

    async def _model(self, version: str, metric: str, sums: ScoreSums) -> dict[str, Any]:
        stored = await self._label_store.adaptives(version, (metric,))
        states = [parse_adaptive(text) for text in stored[metric].values()]
        # Each client has its own adaptive state. Show the median over clients.
        factors = np.exp(np.median([state.logs() for state in states or [Adaptive.new()]], axis=0))
        return {
            "model_version": version,
            "metric": metric,
            "adapted_to": sum(state.outcomes for state in states),
            "clients": len(states),
            **sums.scores(),
            "horizons": [
                {
                    "horizon": horizon_name(horizon_bucket),
                    **sums.scores([c for c in sums.cells if c[1] == horizon_bucket]),
                }
                for horizon_bucket in sums.horizon_buckets()
            ],
            "cells": [
                {
                    "age": age_name(age_bucket),
                    "horizon": horizon_name(horizon_bucket),
                    **sums.scores([(age_bucket, horizon_bucket)]),
                    "stretch": factors[age_bucket, horizon_bucket, [LOW, HIGH - 1]].tolist(),
                    "stretch_by_level": dict(
                        zip(_STRETCHED, factors[age_bucket, horizon_bucket].tolist(), strict=True)
                    ),
                }
                for age_bucket, horizon_bucket in sorted(sums.cells)
            ],
        }
