"""Fits one model: draws samples, trains both stages and forecasts the holdout."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.baselines import member
from index_builder.cascade.fit import NEAR_STEPS, STEPS, fit_cascade
from index_builder.evaluation.intensity_calibration import calibrate_network
from index_builder.neighbours.base_fit import fit_base
from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.neighbours.trajectory_fit import fit_projection, residuals
from index_builder.samples.exposure import exposure_of, oldest_us
from index_builder.samples.network_inputs import ContentInputs, Corpus, SampleSet
from index_builder.samples.samples import draw_samples
from index_builder.scoring.holdout import stopping_half, warm_loss
from index_builder.training.checkpoint import Checkpoints, code_key, run_key
from index_builder.training.config import TrainConfig
from index_builder.training.early_stopping import EarlyStopping
from index_builder.training.objective import Objective
from index_builder.training.plan import Plan
from index_builder.training.point_in_time_bank import PointInTimeBank
from index_builder.training.trainer import FUSION_ROWS, Trainer
from index_builder.trees.fit import FittedTrees, blended, can_fit_trees, fit_trees, tree_reader
from model.cascade import Cascade
from model.engagement.bins import SECOND_US
from model.engagement.types import metric_types
from model.features.shape import shapes
from model.features.tokens import Tokens
from model.features.trajectory import TrajectorySpace
from model.growth.curve_kernels import growth_horizons_us
from model.growth.curves import Curves, curves, trajectory_cuts, usual_pace
from model.quantiles.head import N_CENTRE
from model.quantiles.simple_growth import SimpleGrowth


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """Inputs that all models of a training run share. The inputs cover all videos.

    ``curves``: growth curves up to the as-of time.
    ``content``: inputs of the content network.
    ``tokens``: token sequences.
    ``pace_rows`` (n + 1, K, M, 2) float32: pace after each of n tokens, and without any token.
    ``checkpoints``: folder for checkpoints.
    """

    curves: Curves
    content: ContentInputs
    tokens: Tokens
    pace_rows: NDArray[np.float32]
    checkpoints: Path


@dataclass(frozen=True, slots=True)
class HoldoutForecasts:
    """A model's forecasts of the holdout: ``parts`` of growth (N, J, N_PARTS), for N samples and J horizons.

    The parts are the mean, the median and the steps (``model.quantiles.head``), before calibration. ``plain`` are the
    parts of forecasts without neighbours, or None.
    """

    holdout: SampleSet
    parts: NDArray[np.float32]
    plain: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained network together with the values that a bundle needs.

    ``pace``: the usual pace of growth.
    ``base``: weights of the base forecast of growth.
    ``cascade``: the fitted cascade, or None.
    ``content_weight``: weight of content in similarity.
    ``space``: turns shapes into trajectory vectors.
    ``samples``: number of samples that the network learned from.
    ``stages``: losses and best pass of each stage.
    ``trees``: the boosted trees, or None.
    ``bank``: the bank in which the neighbours of the samples were found, or None.
    ``simple``: the simple member, or None.
    """

    objective: Objective
    pace: NDArray[np.float64]
    base: NDArray[np.float64]
    cascade: Cascade | None
    content_weight: float
    space: TrajectorySpace
    samples: int
    stages: dict[str, EarlyStopping]
    trees: FittedTrees | None = None
    bank: PointInTimeBank | None = None
    simple: SimpleGrowth | None = None


class ModelFit:
    """Fits one model to what was known at ``until_us``. ``samples`` are its training samples.

    ``near`` is another metric's cascade, from which the fit of the cascade starts.
    """

    def __init__(
        self, plan: Plan, inputs: TrainingInputs, until_us: int, config: TrainConfig, near: Cascade | None = None
    ) -> None:
        self._near = near
        self._plan, self._inputs, self._until_us, self._config = plan, inputs, until_us, config
        observed, published = plan.observed, plan.data.published_us
        self._learned = curves(observed.metric, observed.totals, published, until_us, continuous=observed.continuous)
        self._growth_us = growth_horizons_us(plan.max_horizon_us)
        self.pace, self.base = usual_pace(self._learned), fit_base(self._learned, self._growth_us)
        self._curves = replace(inputs.curves, pace=self.pace, base=self.base)
        self._bank: PointInTimeBank | None = None
        self._projection: NDArray[np.float32] | None = None
        self.cascade = self._fit_cascade()
        with plan.step("draw samples", 1) as advance:
            self.samples = self.draw(until_us, plan.seed)
            advance()

    def draw(self, until_us: int, seed: int) -> SampleSet:
        """Draw samples with labels up to ``until_us``."""
        plan, config = self._plan, self._config
        samples = draw_samples(
            plan.observed,
            until_us=until_us,
            max_age_us=plan.max_age_us,
            max_horizon_us=plan.max_horizon_us,
            n_labels=config.labels_per_cut,
            cuts_per_video=config.cuts_per_video,
            seed=seed,
            cascade=self.cascade,
            signals=plan.schema.signals,
            shape_of=plan.schema.metric,
        )
        return SampleSet.of(plan.data, self._curves, samples, plan.max_horizon_us, config.bank_videos)

    def train(self, holdout: SampleSet, earlier: TrainedModel | None = None) -> tuple[TrainedModel, HoldoutForecasts]:
        """Train both stages and the trees, and forecast the holdout.

        Half of the holdout decides which pass was the best. If the holdout is empty, all passes are made and the last
        pass is kept, and ``earlier`` is the model whose trees decide on their number and weights.
        """
        plan, config, inputs = self._plan, self._config, self._inputs
        published = plan.data.published_us
        # The holdout's videos are published after the time up to which the model learns.
        watched = np.where(published <= self._until_us, self._until_us, plan.until_us)
        every = np.arange(len(published))
        corpus = Corpus(
            inputs.tokens,
            exposure_of(plan.observed, every, inputs.tokens, watched, oldest_us(plan.schema)),
            inputs.pace_rows,
            self.samples.samples,
            self.samples.creator,
            inputs.content,
        )
        objective = Objective(
            plan.network(config, cascade=self.cascade is not None),
            corpus,
            plan.max_horizon_us / SECOND_US,
            plan.process_group.device,
            config.batch_tokens,
        )
        objective.fit_scales(self.samples)
        file_prefix = "" if len(holdout) else "all-"
        checkpoints = Checkpoints(inputs.checkpoints, self._key(corpus), plan.process_group, file_prefix)
        trainer = Trainer(objective, config, plan.process_group, checkpoints, plan.seed)
        stopping = stopping_half(plan.data, holdout.samples.video)
        with plan.step(f"train{_suffix(holdout)}", trainer.n_batches() * trainer.passes()) as advance:
            first = trainer.stage_one(holdout.take(stopping), lambda n, note: advance(n, note=note))
        if len(holdout) and config.parts.mhp:
            self._calibrate_intensity(objective, holdout)
        if config.fusion_epochs:
            return self._train_fusion(trainer, holdout, stopping, {"forecast": first}, earlier)
        with plan.step("read states", 1) as advance:
            parts = objective.encode(holdout).parts
            advance()
        model = self._trained(objective, None, {"forecast": first})
        return self._with_simple(model, HoldoutForecasts(holdout, parts, None), stopping, earlier)

    def _with_simple(
        self,
        model: TrainedModel,
        forecasts: HoldoutForecasts,
        stopping: NDArray[np.bool_],
        earlier: TrainedModel | None,
    ) -> tuple[TrainedModel, HoldoutForecasts]:
        """Add the simple member to the ensemble. The stopping half of the holdout decides on its weight."""
        if not self._config.simple_member or (earlier is not None and earlier.simple is None):
            return model, forecasts
        holdout, both = forecasts.holdout, (forecasts.parts, forecasts.plain)
        known = earlier.simple if earlier is not None else None
        simple, parts, plain = member.with_member(self.samples.samples, holdout.samples, both, stopping, known)
        return replace(model, simple=simple), HoldoutForecasts(holdout, parts, plain)

    def _calibrate_intensity(self, objective: Objective, holdout: SampleSet) -> None:
        """Fit the factors of the intensity to training videos and the holdout."""
        plan = self._plan
        with plan.step("calibrate intensity", 1) as advance:
            samples = (self.samples.samples.video, self._until_us), (holdout.samples.video, plan.until_us)
            calibrate_network(objective.net, plan.observed, samples, oldest_us(plan.schema), plan.seed)
            advance()

    def _train_fusion(
        self,
        trainer: Trainer,
        holdout: SampleSet,
        stopping: NDArray[np.bool_],
        stages: dict[str, EarlyStopping],
        earlier: TrainedModel | None,
    ) -> tuple[TrainedModel, HoldoutForecasts]:
        """Run stage two, after ``stages``: find neighbours with the vectors of stage one, and train fusion and head on them."""
        plan, config, objective, fit = self._plan, self._config, trainer.objective, self.samples
        rng = np.random.default_rng(plan.seed)
        warm = np.flatnonzero(fit.samples.now_us > np.quantile(fit.samples.now_us, 0.1))
        fit = fit.take(np.sort(rng.choice(warm, min(config.fusion_samples, len(warm)), replace=False)))
        with plan.step("read states", 2) as advance:
            fit_states = objective.encode(fit)
            advance()
            holdout_states = objective.encode(holdout)
            advance()
        similarity = None
        fit_neighbours, holdout_neighbours = NeighbourInputs.none(len(fit)), NeighbourInputs.none(len(holdout))
        if config.parts.neighbours:
            similarity, fit_neighbours, holdout_neighbours = self._find_neighbours(objective, fit, holdout)
        judged, states, found = (
            holdout.take(stopping),
            holdout_states.hidden[stopping],
            holdout_neighbours.take(stopping),
        )
        steps = config.fusion_epochs * -(-len(fit) // FUSION_ROWS)
        with plan.step(f"train fusion{_suffix(holdout)}", steps) as advance:
            second = trainer.stage_two(
                fit,
                fit_states.hidden,
                fit_neighbours,
                lambda: warm_loss(judged.samples, objective.predict(judged, states, found)),
                lambda n, note: advance(n, note=note),
            )
        parts, plain = objective.predict(holdout, holdout_states.hidden, holdout_neighbours), None
        if similarity:
            plain = objective.predict(holdout, holdout_states.hidden, NeighbourInputs.none(len(holdout)))
        model = self._trained(objective, similarity, stages | {"fusion": second})
        trees = self._fit_trees((fit, fit_neighbours), (holdout, holdout_neighbours, parts), stopping, earlier)
        if trees is not None:
            content, none = self._inputs.content, NeighbourInputs.none(len(holdout))
            read = trees.inputs(holdout, content, holdout_neighbours)
            parts = blended(parts, holdout, trees.centre(read), trees.weight)
            if plain is not None:
                plain = blended(plain, holdout, trees.centre(trees.inputs(holdout, content, none)), trees.weight)
            model = replace(model, trees=trees)
        return self._with_simple(model, HoldoutForecasts(holdout, parts, plain), stopping, earlier)

    def _fit_trees(
        self,
        fit: tuple[SampleSet, NeighbourInputs],
        holdout: tuple[SampleSet, NeighbourInputs, NDArray[np.float32]],
        stopping: NDArray[np.bool_],
        earlier: TrainedModel | None,
    ) -> FittedTrees | None:
        """Fit the boosted trees. The stopping half of the holdout decides on their number and weights."""
        plan = self._plan
        if (
            not self._config.tree_rounds
            or not plan.process_group.is_first
            or (earlier is not None and earlier.trees is None)
            or not can_fit_trees()
        ):
            return None
        sample_set, found, parts = holdout
        rest = sample_set.take(stopping), found.take(stopping), parts[stopping][..., :N_CENTRE]
        judged = rest if len(sample_set) else None
        with plan.step("fit trees", 1) as advance:
            content = self._inputs.content
            trees = fit_trees(
                fit,
                judged,
                content,
                tree_reader(
                    fit[0],
                    content,
                    plan.schema,
                    self.base,
                    self._projection,
                    reads_content=self._config.use_content,
                ),
                self._config.tree_rounds,
                plan.seed,
                earlier.trees if earlier else None,
                few=plan.few,
            )
            advance()
        return trees

    def _find_neighbours(
        self, objective: Objective, *sample_sets: SampleSet
    ) -> tuple[tuple[float, TrajectorySpace], NeighbourInputs, NeighbourInputs]:
        """Find the neighbours of the samples of two sample sets.

        Return (content weight, trajectory space), then the neighbours of each set. The content weight is chosen on the
        first set.
        """
        plan = self._plan
        space = self._trajectory_space(objective.corpus.tokens)
        with plan.step("find neighbours", sum(map(len, sample_sets))) as advance:
            bank = PointInTimeBank.of(plan.observed, self._curves, space, objective, self._config, plan.max_horizon_us)
            candidates = [bank.candidates(sample_set, lambda n: advance(n)) for sample_set in sample_sets]
        self._bank = bank
        fit, holdout = sample_sets
        weight = plan.process_group.broadcast_value(bank.best_weight(fit, candidates[0]))
        return (
            (weight, space),
            bank.nearest(fit, candidates[0], weight),
            bank.nearest(holdout, candidates[1], weight),
        )

    def _trajectory_space(self, tokens: Tokens) -> TrajectorySpace:
        """Fit the projection of trajectory vectors to what was known at ``until_us``."""
        plan = self._plan
        video, bucket, _ = trajectory_cuts(self._learned)
        if not self._config.parts.by_trajectory:
            video, bucket = video[:0], bucket[:0]
        with plan.step("fit trajectories", 1) as advance:
            shape = shapes(tokens, video, bucket, metric_types(plan.observed.name, plan.data.types))
            residual = residuals(replace(self._learned, base=self.base), self._growth_us, video, bucket)
            space = TrajectorySpace.around(shape, bucket)
            space = fit_projection(space, shape, residual, video, bucket, plan.seed)
            advance()
        return replace(space, projection=plan.process_group.broadcast(space.projection))

    def _trained(
        self,
        objective: Objective,
        similarity: tuple[float, TrajectorySpace] | None,
        stages: dict[str, EarlyStopping],
    ) -> TrainedModel:
        without = (
            self._config.parts.fixed_weight or 0.0,
            TrajectorySpace.around(self.samples.samples.shape[:0], self.samples.samples.bucket[:0]),
        )
        weight, space = similarity or without
        own = self.pace, self.base, self.cascade, weight, space, len(self.samples), stages
        return TrainedModel(objective, *own, bank=self._bank)

    def _fit_cascade(self) -> Cascade | None:
        """Return the cascade fitted to the events, or None for counters. The first process's fit is used by all processes."""
        plan = self._plan
        if not (plan.observed.continuous and self._config.parts.cascade):
            return None
        with plan.step("fit cascade", STEPS if self._near is None else NEAR_STEPS) as advance:
            fitted = fit_cascade(
                plan.observed,
                self._until_us,
                plan.max_age_us,
                plan.max_horizon_us,
                seed=plan.seed,
                near=self._near,
                advance=lambda n: advance(n),
            )
        if fitted is None:
            return None
        broadcast = plan.process_group.broadcast
        return replace(fitted, constants=broadcast(fitted.constants), correction=broadcast(fitted.correction))

    def _key(self, corpus: Corpus) -> str:
        """Return a SHA-256 digest of the settings and of everything that the fit reads."""
        plan = self._plan
        arrays = [
            getattr(part, field.name)
            for part in (corpus.tokens, corpus.samples, corpus.content)
            for field in fields(part)
        ]
        return run_key(
            asdict(self._config),
            plan.seed,
            plan.as_of_us,
            plan.observed.name,
            plan.schema.metric,
            str(plan.process_group.device.type),
            plan.process_group.size,
            versions(),
            code_key(),
            corpus.creator,
            *arrays,
        )


def _suffix(holdout: SampleSet) -> str:
    """Return a suffix that distinguishes the second model's steps from the first model's steps."""
    return "" if len(holdout) else " again, on all videos"


def versions() -> dict[str, str]:
    """Return the versions of the libraries that the result of training depends on."""
    return {"torch": torch.__version__, "numpy": np.__version__}
