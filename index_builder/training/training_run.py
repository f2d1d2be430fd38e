"""What a training run learns: a model of what was known before its newest videos, judged on those, and for few videos one of all.

The newest videos are held back. They say which pass of each stage was the best, calibrate the intervals and are scored. Where
videos are few, those held back are too many to lose and the newest are the ones most like what is to come: then a second
model learns from all of them, from the same start, for as many passes as were best, and takes the calibration of the first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.cascade.fit import STEPS, fit_cascade
from index_builder.samples.network_inputs import Corpus, Window, content_inputs, token_sequences
from index_builder.samples.samples import draw_samples
from index_builder.scoring.holdout import stopping_half, warm_pinball
from index_builder.training.checkpoint import Checkpoints, code_key, run_key
from index_builder.training.config import TrainConfig
from index_builder.training.early_stopping import EarlyStopping
from index_builder.training.objective import Encoded, NeighbourInputs, Objective
from index_builder.training.plan import Plan
from index_builder.training.point_in_time_bank import PointInTimeBank
from index_builder.training.trainer import FUSION_ROWS, Trainer
from model.cascade import Cascade
from model.engagement.bins import SECOND_US
from model.errors import DataError
from model.growth.curves import curves, usual_pace
from model.mhp.pace import pace_before
from model.network import M3TR

NGRAM_BUCKETS: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class HoldoutForecasts:
    """What a model makes of the ``held`` window: growth quantiles (N, J, 3), and ``plain`` ones without neighbours."""

    held: Window
    quantiles: NDArray[np.float32]
    plain: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained network with what belongs to it.

    ``pace`` is the usual pace of growth; ``weight`` that of content in similarity; ``centre`` (d_model,) what is taken off
    trajectories; ``samples`` how many moments were learned from; ``passes`` of each stage.
    """

    objective: Objective
    pace: NDArray[np.float64]
    cascade: Cascade | None
    weight: float
    centre: NDArray[np.float32]
    samples: int
    passes: dict[str, EarlyStopping]


class TrainingRun:
    """Learns the models of a plan, on every process alike. ``sentence`` (V, 384) of all videos; checkpoints go to a folder."""

    def __init__(self, plan: Plan, sentence: NDArray[np.float32], checkpoints: Path) -> None:
        self.plan = plan
        self.checkpoints = checkpoints
        seen, until_us = plan.seen, plan.until_us
        self.known = curves(seen.metric, seen.totals, plan.data.published_us, until_us, continuous=seen.continuous)
        self.content = content_inputs(plan.data.videos, plan.schema, sentence)
        self.tokens = token_sequences(seen, until_us)
        self.pace_before = pace_before(self.tokens)

    def judged(self) -> tuple[TrainedModel, HoldoutForecasts]:
        """Learn from what was known before the newest videos, and forecast those.

        Raises:
            DataError: nothing is left to learn from, or to judge by.
        """
        plan = self.plan
        one = _Fit(self, plan.split_us, plan.config)
        held = one.window(plan.until_us, plan.seed + 1)
        held = held.take(
            (held.samples.now_us > plan.split_us) & (plan.data.published_us[held.samples.video] > plan.split_us)
        )
        if not len(one.fit) or not len(held):
            raise DataError(
                "data: no video has both an observation and a later one on each side of the split; more data or a later --as-of is needed"
            )
        return one.learn(held)

    def whole(self, first: TrainedModel) -> TrainedModel:
        """Learn from all that is known, for as many passes as were best at ``first``."""
        passes = {name: best.epoch + 1 for name, best in first.passes.items()}
        config = replace(
            self.plan.config,
            epochs=passes["forecast"],
            patience=0,
            fusion_epochs=passes.get("fusion", self.plan.config.fusion_epochs),
        )
        every = _Fit(self, self.plan.until_us, config)
        return every.learn(every.fit.take(np.zeros(0, np.int64)))[0]


class _Fit:
    """One model of a learner's plan, from what was known by ``until_us``."""

    def __init__(self, learner: TrainingRun, until_us: int, config: TrainConfig) -> None:
        self._learner, self._plan, self._until_us, self._config = learner, learner.plan, until_us, config
        seen, published = self._plan.seen, self._plan.data.published_us
        self.pace = usual_pace(curves(seen.metric, seen.totals, published, until_us, continuous=seen.continuous))
        self._known = replace(learner.known, pace=self.pace)
        self.cascade = self._fitted_cascade()
        with self._plan.step("draw samples", 1) as advance:
            self.fit = self.window(until_us, self._plan.seed)
            advance()

    def window(self, until_us: int, seed: int) -> Window:
        """Samples with labels up to ``until_us``."""
        plan, c = self._plan, self._config
        samples = draw_samples(
            plan.seen,
            until_us=until_us,
            max_age_us=plan.max_age_us,
            max_horizon_us=plan.max_horizon_us,
            n_labels=c.labels_per_cut,
            cuts_per_video=c.cuts_per_video,
            seed=seed,
            cascade=self.cascade,
        )
        return Window.of(plan.data, self._known, samples, plan.max_horizon_us, c.bank_videos)

    def learn(self, held: Window) -> tuple[TrainedModel, HoldoutForecasts]:
        """Both stages, judged by part of ``held``; if that is empty every pass is made and the last one kept."""
        plan, config, fit = self._plan, self._config, self.fit
        corpus = Corpus(
            self._learner.tokens, self._learner.pace_before, fit.samples, fit.creator, self._learner.content
        )
        objective = Objective(
            self._network(), corpus, plan.max_horizon_us / SECOND_US, plan.process_group.device, config.batch_tokens
        )
        objective.fit_scales(fit)
        checkpoints = Checkpoints(
            self._learner.checkpoints, self._key(corpus), plan.process_group, "" if len(held) else "all-"
        )
        trainer = Trainer(objective, config, plan.process_group, checkpoints, plan.seed)
        decides = stopping_half(plan.data, held.samples.video)
        with plan.step(f"train{_of_all(held)}", trainer.n_batches() * trainer.passes()) as advance:
            first = trainer.stage_one(held.take(decides), lambda n, note: advance(n, note=note))
        if config.fusion_epochs:
            return self._second(trainer, held, decides, first)
        with plan.step("read states", 1) as advance:
            quantiles = objective.encode(held).quantiles
            advance()
        return self._learned(objective, None, {"forecast": first}), HoldoutForecasts(held, quantiles, None)

    def _second(
        self, trainer: Trainer, held: Window, decides: NDArray[np.bool_], first: EarlyStopping
    ) -> tuple[TrainedModel, HoldoutForecasts]:
        """Stage two: find neighbours with the vectors of stage one, and train the head on what they and the states say."""
        plan, config, objective, fit = self._plan, self._config, trainer.objective, self.fit
        rng = np.random.default_rng(plan.seed)
        warm = np.flatnonzero(fit.samples.now_us > np.quantile(fit.samples.now_us, 0.1))
        fit = fit.take(np.sort(rng.choice(warm, min(config.fusion_samples, len(warm)), replace=False)))
        with plan.step("read states", 2) as advance:
            learned = objective.encode(fit)
            advance()
            judged = objective.encode(held)
            advance()
        recalled, learn, judge = None, NeighbourInputs.none(len(fit)), NeighbourInputs.none(len(held))
        if config.parts.neighbours:
            recalled, learn, judge = self._recall(objective, (fit, learned), (held, judged))
        deciders, states, found = held.take(decides), judged.hidden[decides], judge.take(decides)
        with plan.step(f"train fusion{_of_all(held)}", config.fusion_epochs * -(-len(fit) // FUSION_ROWS)) as advance:
            second = trainer.stage_two(
                fit,
                learned.hidden,
                learn,
                lambda: warm_pinball(deciders.samples, objective.predict(deciders, states, found)),
                lambda n, note: advance(n, note=note),
            )
        quantiles = objective.predict(held, judged.hidden, judge)
        plain = objective.predict(held, judged.hidden, NeighbourInputs.none(len(held))) if recalled else None
        return (
            self._learned(objective, recalled, {"forecast": first, "fusion": second}),
            HoldoutForecasts(held, quantiles, plain),
        )

    def _recall(
        self, objective: Objective, *windows: tuple[Window, Encoded]
    ) -> tuple[tuple[float, NDArray[np.float32]], NeighbourInputs, NeighbourInputs]:
        """Weight of content and centre of trajectories, by the first window, and neighbours of the samples of two windows."""
        plan = self._plan
        with plan.step("find neighbours", sum(len(window) for window, _ in windows)) as advance:
            recall = PointInTimeBank.of(
                plan.seen, self._known, objective, self._config, plan.max_horizon_us, self.cascade
            )
            candidates = [recall.candidates(window, read, lambda n: advance(n)) for window, read in windows]
        (fit, _), (held, _) = windows
        weight = plan.process_group.broadcast_value(recall.best_weight(fit, candidates[0]))
        return (
            (weight, recall.centre),
            recall.nearest(fit, candidates[0], weight),
            recall.nearest(held, candidates[1], weight),
        )

    def _learned(
        self, objective: Objective, recalled: tuple[float, NDArray[np.float32]] | None, passes: dict[str, EarlyStopping]
    ) -> TrainedModel:
        nothing = self._config.parts.fixed_weight or 0.0, np.zeros(self._plan.shape.d_model, np.float32)
        return TrainedModel(objective, self.pace, self.cascade, *(recalled or nothing), len(self.fit), passes)

    def _fitted_cascade(self) -> Cascade | None:
        """What events alone expect; None for counters. The first process fits it for all."""
        plan = self._plan
        if not (plan.seen.continuous and self._config.parts.cascade):
            return None
        with plan.step("fit cascade", STEPS) as advance:
            fitted = fit_cascade(
                plan.seen,
                self._until_us,
                plan.max_age_us,
                plan.max_horizon_us,
                seed=plan.seed,
                advance=lambda n: advance(n),
            )
        if fitted is None:
            return None
        return replace(
            fitted,
            constants=plan.process_group.broadcast(fitted.constants),
            correction=plan.process_group.broadcast(fitted.correction),
        )

    def _network(self) -> M3TR:
        """The network before training, the same on every process; what is dropped out in training differs between them."""
        plan, config = self._plan, self._config
        torch.manual_seed(plan.seed)
        net = M3TR(
            plan.shape,
            len(plan.schema.categories),
            len(plan.schema.languages),
            NGRAM_BUCKETS,
            text_dropout=config.text_dropout,
            head_dropout=config.head_dropout,
            parts=config.parts,
            cascade=self.cascade is not None,
            small_head=plan.few,
        )
        if plan.process_group.size > 1:
            torch.manual_seed(plan.seed * plan.process_group.size + plan.process_group.rank)
        return net

    def _key(self, corpus: Corpus) -> str:
        """What tells this run from another: its settings, and all that it reads."""
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
            plan.seen.name,
            str(plan.process_group.device.type),
            plan.process_group.size,
            versions(),
            code_key(),
            corpus.creator,
            *arrays,
        )


def _of_all(held: Window) -> str:
    """Tells the steps of the second model from those of the first."""
    return "" if len(held) else " again, on all videos"


def versions() -> dict[str, str]:
    """Of what a training's result depends on."""
    return {"torch": torch.__version__, "numpy": np.__version__}
