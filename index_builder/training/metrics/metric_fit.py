"""Fits a further metric of a bundle. It reads the states and content vectors of the first metric's network."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.samples.network_inputs import SampleSet
from index_builder.scoring.holdout import stopping_half
from index_builder.training.checkpoint import Checkpoints
from index_builder.training.config import TrainConfig
from index_builder.training.model_fit import HoldoutForecasts, ModelFit, TrainedModel, TrainingInputs
from index_builder.training.objective import Objective
from index_builder.training.plan import Plan
from index_builder.training.trainer import Trainer
from index_builder.trees.fit import FittedTrees
from model.engagement.bins import SECOND_US
from model.features.trajectory import TrajectorySpace
from model.network import M3TR

_SHARED: Final = ("mhp.", "intensity.", "ngrams.", "content.", "category.", "language.", "audience.")
"""Prefixes of the weights that do not depend on the metric."""
_FURTHER_PASSES: Final = 2
"""Passes of a further metric, as a multiple of the passes of stage two. Its head starts from that of the first metric."""
_MIN_PASSES: Final = 4


def further_config(config: TrainConfig) -> TrainConfig:
    """Return the settings with which a further metric is trained."""
    passes = max(_FURTHER_PASSES * config.fusion_epochs, _MIN_PASSES)
    return replace(config, fusion_epochs=passes, use_retrieval=config.parts.neighbours)


class MetricFit(ModelFit):
    """Fits head, fusion, trees and cascade of a further metric. ``first`` is the trained model of the first metric."""

    def __init__(
        self, plan: Plan, inputs: TrainingInputs, until_us: int, config: TrainConfig, first: TrainedModel
    ) -> None:
        super().__init__(plan, inputs, until_us, config, first.cascade)
        self._first = first

    def train(self, holdout: SampleSet, earlier: TrainedModel | None = None) -> tuple[TrainedModel, HoldoutForecasts]:
        """Train fusion, head and trees on the states of the first metric's network, and forecast the holdout."""
        plan, config, first = self._plan, self._config, self._first
        corpus = replace(first.objective.corpus, samples=self.samples.samples, creator=self.samples.creator)
        objective = Objective(
            self._warm_network(first.objective.net),
            corpus,
            plan.max_horizon_us / SECOND_US,
            plan.process_group.device,
            config.batch_tokens,
        )
        objective.fit_numbers(self.samples)
        name = f"{plan.schema.metrics.index(plan.observed.name)}-{'' if len(holdout) else 'all-'}"
        checkpoints = Checkpoints(self._inputs.checkpoints, self._key(corpus), plan.process_group, name)
        trainer = Trainer(objective, config, plan.process_group, checkpoints, plan.seed)
        return self._train_fusion(trainer, holdout, stopping_half(plan.data, holdout.samples.video), {}, earlier)

    def _warm_network(self, first: M3TR) -> M3TR:
        """Return a network with the weights of the first metric's network. Only the parts that depend on a cascade may be untrained."""
        net = self._plan.network(self._config, cascade=self.cascade is not None)
        given, own = first.state_dict(), net.state_dict()
        alike = first.n_cascade == net.n_cascade
        net.load_state_dict(
            {name: given[name] if alike or name.startswith(_SHARED) else value for name, value in own.items()}
        )
        return net

    def _find_neighbours(
        self, objective: Objective, *sample_sets: SampleSet
    ) -> tuple[tuple[float, TrajectorySpace], NeighbourInputs, NeighbourInputs]:
        """Find the neighbours that the first metric's search finds. Their growth is that of this metric."""
        first, bank = self._first, self._first.bank
        assert bank is not None
        own = replace(bank, arrays=replace(bank.arrays, curves=self._curves))
        found = []
        with self._plan.step("find neighbours", sum(map(len, sample_sets))) as advance:
            for sample_set in sample_sets:
                candidates = bank.candidates(sample_set, lambda n: advance(n))
                found.append(own.nearest(sample_set, candidates, first.content_weight))
        return (first.content_weight, first.space), found[0], found[1]

    def _fit_trees(
        self,
        fit: tuple[SampleSet, NeighbourInputs],
        holdout: tuple[SampleSet, NeighbourInputs, NDArray[np.float32]],
        stopping: NDArray[np.bool_],
        earlier: TrainedModel | None,
    ) -> FittedTrees | None:
        """Fit the boosted trees, which read the same components of the text as those of the first metric."""
        if self._first.trees is None:
            return None
        self._projection = self._first.trees.reader.projection
        return super()._fit_trees(fit, holdout, stopping, earlier)
