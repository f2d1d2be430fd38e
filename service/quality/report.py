"""What GET /quality shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from model.quantiles.adaptive import Adaptive
from service.quality.label_store import LabelStore, parse_adaptive
from service.quality.scores import ScoreSums, age_name, horizon_name
from service.settings import QualitySettings


class Report:
    """Scores of the last days, by model, horizon, and age."""

    def __init__(self, ledger: LabelStore, settings: QualitySettings, clock: Callable[[], int]) -> None:
        self._ledger, self._clock = ledger, clock
        self._days, self._adaptive = settings.quality_days, settings.adaptive

    async def read(self, active: str) -> dict[str, Any]:
        """The report; raises Unavailable when the store does not answer."""
        tallies = await self._ledger.tallies(self._clock())
        return {
            "model_version": active,
            "days": self._days,
            "adaptive": self._adaptive,
            "pending": await self._ledger.pending(),
            "models": [await self._model(version, tally) for version, tally in tallies.items()],
        }

    async def _model(self, version: str, tally: ScoreSums) -> dict[str, Any]:
        states = [parse_adaptive(text) for text in (await self._ledger.adaptives(version)).values()]
        # Of several clients, each of whom has its own: that in the middle.
        factors = np.exp(np.median([state.logs() for state in states or [Adaptive.new()]], axis=0))
        return {
            "model_version": version,
            "adapted_to": sum(state.outcomes for state in states),
            "clients": len(states),
            **tally.scores(),
            "horizons": [
                {"horizon": horizon_name(column), **tally.scores([c for c in tally.cells if c[1] == column])}
                for column in tally.columns()
            ],
            "cells": [
                {
                    "age": age_name(row),
                    "horizon": horizon_name(column),
                    **tally.scores([(row, column)]),
                    "stretch": factors[row, column].tolist(),
                }
                for row, column in sorted(tally.cells)
            ],
        }
