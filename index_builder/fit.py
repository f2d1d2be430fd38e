"""The training loops.

Stage one trains the Mamba-Hawkes process, the content network and the head together, on forecast and likelihood. Stage two freezes
what makes the vectors, because neighbours are found with them, and trains fusion and head on retrieved neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index_builder.batches import Batch, batches
from index_builder.config import TrainConfig
from index_builder.corpus import Corpus
from index_builder.samples import Samples
from model.head import QUANTILES, basis
from model.network import FUSED_DIM, M3TR

Report = Callable[[int, str], None]
"""Told (batches done, a note)."""
_COLD_WEIGHT = 0.05
"""A forecast from nothing errs by bits where others err by tenths; it must not drown them."""
_SQUARED_WEIGHT = 0.1
_NO_NEIGHBOURS = 0.15
"""Share of stage-two samples that see no neighbour, so that a lost bank costs little."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Stage one's output for N samples: ``hidden`` (N, d_model) and ``quantiles`` (N, J, 3) of growth, float32."""

    hidden: NDArray[np.float32]
    quantiles: NDArray[np.float32]


class Trainer:
    """Holds a network and a corpus on one device."""

    def __init__(
        self, net: M3TR, corpus: Corpus, config: TrainConfig, max_horizon_s: float, device: str, seed: int
    ) -> None:
        self.net = net.to(device)
        self.corpus = corpus
        self.config = config
        self._max_horizon_s = max_horizon_s
        self._device = torch.device(device)
        self._rng = np.random.default_rng(seed)
        self._lengths = np.diff(corpus.tokens.offsets)
        self._levels = torch.tensor(QUANTILES, device=self._device)

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def content(self, videos: NDArray[np.int64]) -> Tensor:
        """Content vectors of videos (N,) of the corpus: (N, CONTENT_DIM)."""
        c = self.corpus.content
        starts, ends = c.ngram_offsets[videos], c.ngram_offsets[videos + 1]
        ids = np.concatenate([c.ngram_ids[a:b] for a, b in zip(starts, ends, strict=True)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(ends - starts)[:-1]])
        out: Tensor = self.net.content(
            self._put(c.sentence[videos]), self.net.ngrams(self._put(ids), self._put(offsets)),
            self._put(c.static[videos, 4:5]), self._put(c.category[videos]), self._put(c.language[videos]),
            self._put(c.static[videos]),
        )  # fmt: skip
        return out

    def _scan(self, samples: Samples, batch: Batch) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Hidden states after every token (L, B, d), as read at the batch's real cuts (n, d), and the tokens' indices (L, B)."""
        tokens = self.corpus.tokens
        step = np.arange(batch.length)[:, None]
        index = tokens.offsets[batch.videos][None] + np.minimum(step, np.maximum(self._lengths[batch.videos] - 1, 0))
        index = np.minimum(index, max(len(tokens.features) - 1, 0))
        rows = batch.rows
        hidden, read = self.net.mhp(
            self._put(tokens.features[index]), self._put(tokens.clock[index]),
            self._put(np.where(batch.real, samples.position[rows], 0)), self._put(samples.branch[rows]),
            self._put(samples.branch_clock[rows]), self._put(samples.pending[rows]),
        )  # fmt: skip
        return hidden, read[self._put(batch.real)], index

    def _target(
        self, samples: Samples, creator: NDArray[np.float32], rows: NDArray[np.int64], hidden: Tensor
    ) -> Tensor:
        videos, inverse = np.unique(samples.video[rows], return_inverse=True)
        return self.net.target(
            hidden, self._put(samples.branch[rows, 1]), self._put(samples.last[rows]),
            self.content(videos)[self._put(inverse)], self._put(creator[rows]),
        )  # fmt: skip

    def _quantiles(self, samples: Samples, rows: NDArray[np.int64], coefficients: Tensor) -> Tensor:
        phi = basis(samples.age_s[rows][:, None], samples.horizon_s[rows], self._max_horizon_s).astype(np.float32)
        return torch.cumsum(torch.einsum("njm,nqm->njq", self._put(phi), coefficients), -1)

    def _loss(self, samples: Samples, rows: NDArray[np.int64], quantiles: Tensor) -> Tensor:
        growth = self._put(samples.growth[rows].astype(np.float32))
        known = torch.isfinite(growth)
        growth = torch.nan_to_num(growth)
        error = growth.unsqueeze(-1) - quantiles
        pinball = torch.maximum(self._levels * error, (self._levels - 1) * error).mean(-1)
        squared = F.huber_loss(quantiles[..., 1], growth, reduction="none", delta=1.0)
        weight = known.float() * self._put(
            np.where(samples.cold[rows], _COLD_WEIGHT, 1.0).astype(np.float32)
        ).unsqueeze(-1)
        return ((pinball + _SQUARED_WEIGHT * squared) * weight).sum() / weight.sum().clamp(min=1e-6)

    def _log_likelihood(self, batch: Batch, hidden: Tensor, index: NDArray[np.int64]) -> Tensor:
        tokens = self.corpus.tokens
        before = torch.cat([self.net.intensity.start.expand(1, hidden.shape[1], -1), hidden[:-1]])
        real = np.arange(batch.length)[:, None] < np.minimum(self._lengths[batch.videos], batch.length)
        at, mask = index[real], self._put(real)
        previous, start, end = (self._put(column) for column in tokens.interval_s[at].T)
        value = self.net.intensity.log_likelihood(before[mask], previous, start, end, self._put(tokens.counts[at]))
        observed = self._put(tokens.observed[at])
        return (value * observed).sum() / observed.sum().clamp(min=1)

    def _optimizer(
        self, parameters: list[tuple[str, torch.nn.Parameter]], rate: float, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        decayed = [p for name, p in parameters if p.ndim >= 2 and "A_log" not in name]
        others = [p for name, p in parameters if not (p.ndim >= 2 and "A_log" not in name)]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=rate,
        )
        warm = min(200, max(1, steps // 10))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / steps))))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def stage_one(self, epochs: int, report: Report) -> None:
        """Train Mamba-Hawkes, content and head."""
        samples, creator, config = self.corpus.samples, self.corpus.creator, self.config
        steps = self.n_batches() * epochs
        parameters = [(n, p) for n, p in self.net.named_parameters() if not n.startswith("fusion.")]
        optimizer, schedule = self._optimizer(parameters, config.learning_rate, steps)
        for epoch in range(epochs):
            self.net.train()
            for batch in batches(samples, config.batch_tokens, rng=self._rng):
                hidden, read, index = self._scan(samples, batch)
                rows = batch.rows[batch.real]
                target = self._target(samples, creator, rows, read)
                quantiles = self._quantiles(
                    samples, rows, self.net.head(target, target.new_zeros(len(rows), FUSED_DIM))
                )
                loss = self._loss(samples, rows, quantiles)
                total = loss
                if config.likelihood_weight:
                    total = loss - config.likelihood_weight * self._log_likelihood(batch, hidden, index)
                optimizer.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
                optimizer.step()
                schedule.step()
                report(1, f"epoch {epoch + 1}/{epochs} loss {loss.item():.4f}")

    def n_batches(self) -> int:
        """Batches of one epoch (to within the shuffling)."""
        return sum(1 for _ in batches(self.corpus.samples, self.config.batch_tokens))

    @torch.no_grad()
    def encode(self, samples: Samples, creator: NDArray[np.float32]) -> Encoded:
        """Stage one's reading of samples, without dropout."""
        self.net.eval()
        hidden = np.zeros((len(samples.video), self.net.mhp.shape.d_model), np.float32)
        out = np.zeros((*samples.growth.shape, 3), np.float32)
        for batch in batches(samples, self.config.batch_tokens):
            _, read, _ = self._scan(samples, batch)
            rows = batch.rows[batch.real]
            target = self._target(samples, creator, rows, read)
            quantiles = self._quantiles(samples, rows, self.net.head(target, target.new_zeros(len(rows), FUSED_DIM)))
            hidden[rows], out[rows] = read.cpu().numpy(), quantiles.cpu().numpy()
        return Encoded(hidden, out)

    @torch.no_grad()
    def log_likelihood(self, samples: Samples) -> float:
        """Mean log-likelihood of a token and type over the videos of ``samples``."""
        self.net.eval()
        values = []
        for batch in batches(samples, self.config.batch_tokens):
            hidden, _, index = self._scan(samples, batch)
            values.append(float(self._log_likelihood(batch, hidden, index)))
        return float(np.mean(values)) if values else float("nan")

    def stage_two(
        self, samples: Samples, creator: NDArray[np.float32], hidden: NDArray[np.float32],
        neighbours: NDArray[np.float32], mask: NDArray[np.float32], epochs: int, report: Report,
    ) -> None:  # fmt: skip
        """Train fusion and head on samples with their neighbours (N, K, N_NEIGHBOUR) and mask (N, K)."""
        parameters = [(n, p) for n, p in self.net.named_parameters() if n.startswith(("fusion.", "head."))]
        size = 512
        steps = epochs * math.ceil(len(samples.video) / size)
        optimizer, schedule = self._optimizer(parameters, self.config.learning_rate / 2, steps)
        self.net.eval()
        for epoch in range(epochs):
            self.net.fusion.train()
            self.net.head.train()
            order = self._rng.permutation(len(samples.video))
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                seen = mask[rows] * (self._rng.random((len(rows), 1)) >= _NO_NEIGHBOURS)
                with torch.no_grad():
                    target = self._target(samples, creator, rows, self._put(hidden[rows]))
                fused = self.net.fusion(target, self._put(neighbours[rows]), self._put(seen.astype(np.float32)))
                loss = self._loss(samples, rows, self._quantiles(samples, rows, self.net.head(target, fused)))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
                optimizer.step()
                schedule.step()
                report(1, f"fusion epoch {epoch + 1}/{epochs} loss {loss.item():.4f}")

    @torch.no_grad()
    def predict(
        self, samples: Samples, creator: NDArray[np.float32], hidden: NDArray[np.float32],
        neighbours: NDArray[np.float32], mask: NDArray[np.float32],
    ) -> NDArray[np.float32]:  # fmt: skip
        """Growth quantiles (N, J, 3) of the whole model."""
        self.net.eval()
        out = np.zeros((*samples.growth.shape, 3), np.float32)
        for start in range(0, len(samples.video), 2048):
            rows = np.arange(start, min(start + 2048, len(samples.video)))
            target = self._target(samples, creator, rows, self._put(hidden[rows]))
            fused = self.net.fusion(target, self._put(neighbours[rows]), self._put(mask[rows]))
            out[rows] = self._quantiles(samples, rows, self.net.head(target, fused)).cpu().numpy()
        return out
