"""Runs the training loops of the two stages.

Stage one trains the Mamba-Hawkes process, the content network and the head together, on forecasts and likelihood.
Stage two freezes the components that make vectors, because neighbours are searched with these vectors. Stage two trains
fusion and head on retrieved neighbours. After every pass, a stage computes the holdout loss and writes a checkpoint. A
stage ends with the weights of its best pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.samples.network_inputs import SampleSet
from index_builder.scoring.holdout import warm_loss
from index_builder.training.batches import batches
from index_builder.training.checkpoint import Checkpoints, Training
from index_builder.training.config import TrainConfig
from index_builder.training.distributed import ProcessGroup
from index_builder.training.early_stopping import EarlyStopping
from index_builder.training.objective import Objective

Report = Callable[[int, str], None]
"""Reports progress. The arguments are the number of batches done and a note."""
Losses = Iterator[tuple[Tensor | None, int]]
"""Yields, for each batch of a pass, this process's loss and the number of processes that got a share of the batch.

The loss is None if this process got no share.
"""
FUSION_ROWS: Final = 512
"""Number of samples per batch of stage two."""
_HEAD: Final = ("head.", "category.", "language.", "audience.")
_SECOND: Final = ("fusion.", *_HEAD)
"""Prefixes of the parameters that stage two trains. No vector of the bank depends on these parameters."""
_NO_NEIGHBOURS: Final = 0.15
"""Fraction of stage-two samples that see no neighbours, so that the model still works without a bank."""


class Trainer:
    """Trains the network of ``objective`` on its corpus, alone or as one of several processes."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        process_group: ProcessGroup,
        checkpoints: Checkpoints,
        seed: int,
    ) -> None:
        self.objective = objective
        self.config = config
        self._process_group = process_group
        self._checkpoints = checkpoints
        self._rng = np.random.default_rng(seed)

    def n_batches(self) -> int:
        """Return the number of batches per pass of stage one. Shuffling may change this number slightly."""
        objective = self.objective
        return sum(
            1 for _ in batches(objective.corpus.samples, self.config.batch_tokens, scanned=objective.scored_tokens)
        )

    def passes(self) -> int:
        """Return the number of passes of stage one."""
        return self.config.passes(self.n_batches(), len(self.objective.corpus.content.category))

    def stage_one(self, judged: SampleSet, report: Report) -> EarlyStopping:
        """Train Mamba-Hawkes, content network and head. The loss on ``judged`` decides which pass was the best."""
        objective, parts = self.objective, self.objective.net.parts
        untouched = [
            "fusion.",
            *(() if parts.mhp else ("mhp.", "intensity.")),
            *(() if parts.content else ("content.", "ngrams.")),
        ]
        return self._stage(
            1,
            self._parameters(lambda name: not name.startswith(tuple(untouched))),
            self.config.learning_rate,
            self.passes(),
            self.n_batches(),
            self._forecast_losses,
            lambda: warm_loss(judged.samples, objective.encode(judged).parts),
            report,
        )

    def stage_two(
        self,
        sample_set: SampleSet,
        hidden: NDArray[np.float32],
        found: NeighbourInputs,
        judge: Callable[[], float],
        report: Report,
    ) -> EarlyStopping:
        """Train fusion and head on samples with their states (N, d_model) and neighbours. ``judge`` returns the holdout loss of a pass.

        In an ablation without neighbours, only the head is trained.
        """
        trained = _SECOND if self.objective.net.parts.neighbours else _HEAD
        return self._stage(
            2,
            self._parameters(lambda name: name.startswith(trained)),
            self.config.learning_rate,
            self.config.fusion_epochs,
            math.ceil(len(sample_set) / FUSION_ROWS),
            lambda: self._fusion_losses(sample_set, hidden, found),
            judge,
            report,
        )

    def _forecast_losses(self) -> Losses:
        objective, config, process_group = self.objective, self.config, self._process_group
        sample_set = SampleSet(objective.corpus.samples, objective.corpus.creator)
        likelihood = config.likelihood_weight if objective.net.parts.mhp else 0.0
        objective.net.train()
        for whole in batches(sample_set.samples, config.batch_tokens, scanned=objective.scored_tokens, rng=self._rng):
            contributors = min(process_group.size, len(whole.videos))
            if process_group.rank >= contributors:
                yield None, contributors
                continue
            batch = whole.share(process_group.rank, process_group.size)
            rows = batch.rows[batch.real]
            with self._lower_precision():
                hidden, read = objective.scan(sample_set.samples, batch)
                coefficients = objective.alone(objective.target(sample_set, rows, read))
            loss = objective.loss(
                sample_set.samples, rows, objective.parts(sample_set.samples, rows, coefficients.float())
            )
            if likelihood:
                value, counts = objective.log_likelihood(batch, hidden.float())
                loss = loss - likelihood * value / max(counts, 1)
            yield loss, contributors

    def _fusion_losses(self, sample_set: SampleSet, hidden: NDArray[np.float32], found: NeighbourInputs) -> Losses:
        objective, process_group = self.objective, self._process_group
        objective.net.eval()
        objective.net.fusion.train()
        objective.net.head.train()
        order = self._rng.permutation(len(sample_set))
        for start in range(0, len(order), FUSION_ROWS):
            whole = order[start : start + FUSION_ROWS]
            visible = found.mask[whole] * (self._rng.random((len(whole), 1)) >= _NO_NEIGHBOURS)
            contributors = min(process_group.size, len(whole))
            if process_group.rank >= contributors:
                yield None, contributors
                continue
            rows, mask = (
                whole[process_group.rank :: process_group.size],
                visible[process_group.rank :: process_group.size].astype(np.float32),
            )
            with self._lower_precision():
                with torch.no_grad():
                    target = objective.target(sample_set, rows, objective.put(hidden[rows]))
                coefficients = objective.fused(target, found.features[rows], mask)
            parts = objective.parts(sample_set.samples, rows, coefficients.float())
            yield objective.loss(sample_set.samples, rows, parts), contributors

    def _stage(
        self,
        number: int,
        parameters: list[tuple[str, nn.Parameter]],
        rate: float,
        passes: int,
        steps: int,
        losses: Callable[[], Losses],
        judge: Callable[[], float],
        report: Report,
    ) -> EarlyStopping:
        """Train one stage and load its best weights.

        The stage resumes from its checkpoint and makes the remaining passes, up to ``passes``. A pass has ``steps``
        batches.
        """
        trained = [parameter for _, parameter in parameters]
        optimizer, schedule = self._optimizer(parameters, rate, steps * passes)
        best = EarlyStopping(self.config.patience)
        training = Training(self.objective.net, optimizer, schedule, self._rng, best)
        if done := self._checkpoints.load(number, training):
            report(done * steps, f"resumes after pass {done}/{passes}")
        while len(best.losses) < passes and not best.exhausted:
            for loss, contributors in losses():
                optimizer.zero_grad()
                if loss is not None:
                    loss.backward()
                self._process_group.all_reduce_gradients(trained, contributors)
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                note = "" if loss is None else f" loss {loss.item():.4f}"
                holdout = f", holdout {best.losses[-1]:.4f}" if best.losses and math.isfinite(best.losses[-1]) else ""
                report(1, f"pass {len(best.losses) + 1}/{passes}{note}{holdout}")
            best.see(
                self._process_group.broadcast_value(judge() if self._process_group.is_first else math.nan),
                self.objective.net,
            )
            self._checkpoints.save(number, training)
        best.restore(self.objective.net)
        return best

    def _parameters(self, wanted: Callable[[str], bool]) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.objective.net.named_parameters() if wanted(name)]

    def _lower_precision(self) -> AbstractContextManager[object]:
        device = self.objective.device.type
        if self.config.precision == "float32" or (self.config.precision == "auto" and device == "cpu"):
            return nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def _optimizer(
        self, parameters: list[tuple[str, nn.Parameter]], rate: float, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        decayed = [p for name, p in parameters if p.ndim >= 2 and "A_log" not in name]
        others = [p for name, p in parameters if not (p.ndim >= 2 and "A_log" not in name)]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=rate,
        )
        warm = min(200, max(1, steps // 10))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (
                0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / max(steps, 1))))
            )

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
