"""Trains the models of a training run: one for the first metric, then one for each further metric.

The first model of a metric does not learn from the newest videos, which are the holdout. The holdout decides which pass
of each stage was the best. The holdout also calibrates the intervals and is scored.

If there are few videos, a second model learns from all videos. There are two reasons. The holdout is too large a part
of the data to leave unused. The holdout videos also resemble future videos most. The second model starts from the same
initial weights and makes the number of passes that was best. The second model uses the calibration of the first model.

A further metric has no process and no content network of its own. Its models read those of the first metric's models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.network_inputs import content_inputs, token_sequences
from index_builder.training.config import TrainConfig
from index_builder.training.metrics.metric_fit import MetricFit, further_config
from index_builder.training.model_fit import HoldoutForecasts, ModelFit, TrainedModel, TrainingInputs
from index_builder.training.plan import Plan
from model.errors import DataError
from model.growth.curves import Curves, curves
from model.mhp.pace import pace_rows


@dataclass(frozen=True, slots=True)
class TrainedMetric:
    """The models of one metric.

    ``observed``: the data set prepared for the metric.
    ``model``: the model to be served. It is either ``scored`` or a model that learned from all videos.
    ``scored``: the model that did not learn from the holdout.
    ``forecasts``: forecasts of the holdout by ``scored``.
    """

    observed: Observed
    model: TrainedModel
    scored: TrainedModel
    forecasts: HoldoutForecasts

    @property
    def name(self) -> str:
        """The name of the metric."""
        return self.observed.name

    def release(self) -> None:
        """Release the inputs of the training samples. The networks have read them."""
        for model in (self.model, self.scored):
            corpus = model.objective.corpus
            model.objective.corpus = replace(corpus, samples=corpus.samples.without_inputs())


class TrainingRun:
    """Trains the models of a plan, in the same way on every process.

    Args:
        plan: the data and the settings of the run.
        sentence: sentence vectors (V, 384) of all videos.
        checkpoints: folder for the checkpoints.
    """

    def __init__(self, plan: Plan, sentence: NDArray[np.float32], checkpoints: Path) -> None:
        tokens = token_sequences(plan.observed, plan.until_us)
        self.plan = plan
        self._inputs = TrainingInputs(
            curves=self._curves(plan.observed),
            content=content_inputs(plan.data.videos, plan.schema, sentence),
            tokens=tokens,
            pace_rows=pace_rows(tokens),
            checkpoints=checkpoints,
        )

    def train(self) -> list[TrainedMetric]:
        """Train every metric, the first metric first.

        Raises:
            DataError: see ``fit_with_holdout``.
        """
        plan = self.plan
        refits = plan.few and plan.config.refit
        scored, forecasts = self.fit_with_holdout()
        first = TrainedMetric(plan.observed, self.refit_on_all(scored) if refits else scored, scored, forecasts)
        first.release()
        out = [first]
        for observed in plan.further:
            own, held = self.fit_with_holdout(observed, first.scored)
            served = self.refit_on_all(own, observed, first.model) if refits else own
            out.append(TrainedMetric(observed, served, own, held))
            out[-1].release()
        return out

    def fit_with_holdout(
        self, observed: Observed | None = None, first: TrainedModel | None = None
    ) -> tuple[TrainedModel, HoldoutForecasts]:
        """Learn from what was known before the newest videos were published, and forecast the newest videos.

        Without ``observed``, the first metric is trained. ``first`` is the first metric's model, which a further metric
        needs.

        Raises:
            DataError: there is nothing to learn from, or the holdout is empty.
        """
        plan = self.plan
        fit = self._fit(observed, plan.split_us, plan.config if first is None else further_config(plan.config), first)
        holdout = fit.draw(plan.until_us, plan.seed + 1)
        after_split = holdout.samples.now_us > plan.split_us
        holdout = holdout.take(after_split & (plan.data.published_us[holdout.samples.video] > plan.split_us))
        if not len(fit.samples) or not len(holdout):
            raise DataError(
                f"data: on one side of the split, no video has both an observation of {(observed or plan.observed).name} and a "
                "later one; more data or a later --as-of is needed"
            )
        return fit.train(holdout)

    def refit_on_all(
        self, scored: TrainedModel, observed: Observed | None = None, first: TrainedModel | None = None
    ) -> TrainedModel:
        """Train a model on everything known. Each stage makes the number of passes that was best in ``scored``."""
        passes = {name: stage.epoch + 1 for name, stage in scored.stages.items()}
        base = self.plan.config if first is None else further_config(self.plan.config)
        config = replace(
            base,
            epochs=passes.get("forecast", base.epochs),
            patience=0,
            fusion_epochs=passes.get("fusion", base.fusion_epochs),
        )
        fit = self._fit(observed, self.plan.until_us, config, first)
        model = fit.train(fit.samples.take(np.zeros(0, np.int64)), scored)[0]
        # Only the first model has a holdout, from which these factors come.
        model.objective.net.intensity.log_factor.copy_(scored.objective.net.intensity.log_factor)
        return model

    def _fit(
        self, observed: Observed | None, until_us: int, config: TrainConfig, first: TrainedModel | None
    ) -> ModelFit:
        if observed is None or first is None:
            return ModelFit(self.plan, self._inputs, until_us, config)
        inputs = replace(self._inputs, curves=self._curves(observed))
        return MetricFit(self.plan.of(observed), inputs, until_us, config, first)

    def _curves(self, observed: Observed) -> Curves:
        plan = self.plan
        return curves(
            observed.metric, observed.totals, plan.data.published_us, plan.until_us, continuous=observed.continuous
        )
