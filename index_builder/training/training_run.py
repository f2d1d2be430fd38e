"""Trains the models of a training run.

The first model does not learn from the newest videos, which are the holdout. The holdout decides which pass of each
stage was the best. The holdout also calibrates the intervals and is scored.

If there are few videos, a second model learns from all videos. There are two reasons. The holdout is too large a part
of the data to leave unused. The holdout videos also resemble future videos most. The second model starts from the same
initial weights and makes the number of passes that was best. The second model uses the calibration of the first model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.network_inputs import content_inputs, token_sequences
from index_builder.training.model_fit import HoldoutForecasts, ModelFit, TrainedModel, TrainingInputs
from index_builder.training.plan import Plan
from model.errors import DataError
from model.growth.curves import curves
from model.mhp.pace import pace_rows


class TrainingRun:
    """Trains the models of a plan, in the same way on every process.

    Args:
        plan: the data and the settings of the run.
        sentence: sentence vectors (V, 384) of all videos.
        checkpoints: folder for the checkpoints.
    """

    def __init__(self, plan: Plan, sentence: NDArray[np.float32], checkpoints: Path) -> None:
        observed, until_us, published_us = plan.observed, plan.until_us, plan.data.published_us
        tokens = token_sequences(observed, until_us)
        self.plan = plan
        self._inputs = TrainingInputs(
            curves=curves(observed.metric, observed.totals, published_us, until_us, continuous=observed.continuous),
            content=content_inputs(plan.data.videos, plan.schema, sentence),
            tokens=tokens,
            pace_rows=pace_rows(tokens),
            checkpoints=checkpoints,
        )

    def fit_with_holdout(self) -> tuple[TrainedModel, HoldoutForecasts]:
        """Learn from what was known before the newest videos were published, and forecast the newest videos.

        Raises:
            DataError: there is nothing to learn from, or the holdout is empty.
        """
        plan = self.plan
        fit = ModelFit(plan, self._inputs, plan.split_us, plan.config)
        holdout = fit.draw(plan.until_us, plan.seed + 1)
        after_split = holdout.samples.now_us > plan.split_us
        holdout = holdout.take(after_split & (plan.data.published_us[holdout.samples.video] > plan.split_us))
        if not len(fit.samples) or not len(holdout):
            raise DataError(
                "data: on one side of the split, no video has both an observation and a later one; more data or a later "
                "--as-of is needed"
            )
        return fit.train(holdout)

    def refit_on_all(self, first: TrainedModel) -> TrainedModel:
        """Train a model on everything known. Each stage makes the number of passes that was best in ``first``."""
        passes = {name: stage.epoch + 1 for name, stage in first.stages.items()}
        config = replace(
            self.plan.config,
            epochs=passes["forecast"],
            patience=0,
            fusion_epochs=passes.get("fusion", self.plan.config.fusion_epochs),
        )
        fit = ModelFit(self.plan, self._inputs, self.plan.until_us, config)
        model = fit.train(fit.samples.take(np.zeros(0, np.int64)), first)[0]
        # Only the first model has a holdout, from which these factors come.
        model.objective.net.intensity.log_factor.copy_(first.objective.net.intensity.log_factor)
        return model
