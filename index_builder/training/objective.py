"""Computes the network's forecasts of samples, and the losses that the network is trained on.

A forecast is head(target, fused). ``target`` joins the state, the newest tokens, content and creator. ``fused`` is
the contribution of the neighbours, or zeros without neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index_builder.neighbours.neighbour_inputs import NeighbourInputs, numbers_read
from index_builder.samples.network_inputs import Corpus, SampleSet
from index_builder.samples.samples import Samples
from index_builder.scoring.holdout import LEVEL_WEIGHTS
from index_builder.training.batches import Batch, batches
from model.network import FUSED_DIM, M3TR
from model.quantiles.head import MEDIAN, N_PARTS, QUANTILES, basis, on_grid_at

_COLD_WEIGHT: Final = 0.05
"""Weight of cold samples in the loss. Their errors are about ten times as large, but must not dominate the loss."""
_SQUARED_WEIGHT: Final = 1.0
"""Weight of the Huber loss of the mean."""
_CASCADE_SQUARED_WEIGHT: Final = 0.5
"""Weight of the Huber loss with a cascade. This weight was chosen on development splits of data sets of posts."""
_DELTA: Final = 1.0
_CASCADE_DELTA: Final = 2.0
"""Error in log2 units above which the Huber loss is linear, with a cascade.

This threshold is larger than ``_DELTA``, the threshold without a cascade, because forecasts with a cascade start in a
video's first minutes.
"""
_EXPECTED_VIDEOS: Final = 300
"""Number of imaginary videos that grow exactly as their cascade expects. In the loss, these videos are added to the real videos.

The fewer real videos there are, the closer forecasts stay to the cascade.
"""
_ROWS: Final = 2048
"""Number of samples per batch when nothing is trained."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Stage one's output for N samples with J horizons each.

    ``hidden`` (N, d_model) float32: hidden states.
    ``parts`` (N, J, N_PARTS) float32: mean, median and steps of growth.
    """

    hidden: NDArray[np.float32]
    parts: NDArray[np.float32]


class Objective:
    """Computes the forecasts and losses of a network on one device. The network reads ``corpus``."""

    def __init__(
        self, net: M3TR, corpus: Corpus, max_horizon_s: float, device: torch.device, batch_tokens: int
    ) -> None:
        self.net = net.to(device)
        self.corpus = corpus
        self.device = device
        self.batch_tokens = batch_tokens
        self._max_horizon_s = max_horizon_s
        self._lengths = np.diff(corpus.tokens.offsets)
        self.scored_tokens = np.diff(corpus.exposure.offsets) - 1
        cascade = corpus.samples.cascade.shape[1] > 0
        self._delta = _CASCADE_DELTA if cascade else _DELTA
        self._squared_weight = _CASCADE_SQUARED_WEIGHT if cascade else _SQUARED_WEIGHT
        self._levels = torch.tensor(QUANTILES, device=device)
        self._level_weights = torch.tensor(LEVEL_WEIGHTS, dtype=torch.float32, device=device)
        self._expected_weight = _EXPECTED_VIDEOS / max(len(np.unique(corpus.samples.video)), 1)

    def put(self, array: NDArray[np.generic]) -> Tensor:
        """Return the array as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def content(self, videos: NDArray[np.int64]) -> Tensor:
        """Return the content vectors (N, CONTENT_DIM) of videos (N,) of the corpus."""
        c, put = self.corpus.content, self.put
        starts, ends = c.ngram_offsets[videos], c.ngram_offsets[videos + 1]
        ids = np.concatenate([c.ngram_ids[a:b] for a, b in zip(starts, ends, strict=True)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(ends - starts)[:-1]])
        out: Tensor = self.net.content(
            put(c.sentence[videos]),
            self.net.ngrams(put(ids), put(offsets)),
            put(c.static[videos, 4:5]),
            put(c.category[videos]),
            put(c.language[videos]),
            put(c.static[videos]),
        )
        return out

    def scan(self, samples: Samples, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scan the tokens of a batch of B videos, up to L tokens per video.

        Return the hidden states (L, B, d) after every token, and the states (n, d) at the batch's n real cut points.
        """
        tokens = self.corpus.tokens
        step = np.arange(batch.length)[:, None]
        index = tokens.offsets[batch.videos][None] + np.minimum(step, np.maximum(self._lengths[batch.videos] - 1, 0))
        index = np.minimum(index, max(len(tokens.features) - 1, 0))
        if not self.net.parts.mhp:
            hidden = torch.zeros(*index.shape, self.net.mhp.shape.d_model, device=self.device)
            return hidden, hidden.new_zeros(int(batch.real.sum()), hidden.shape[-1])
        rows = batch.rows
        hidden, read = self.net.mhp(
            self.put(tokens.features[index]),
            self.put(tokens.clock[index]),
            self.put(np.where(batch.real, samples.position[rows], 0)),
            self.put(samples.branch[rows]),
            self.put(samples.branch_clock[rows]),
            self.put(samples.pending[rows]),
        )
        return hidden, read[self.put(batch.real)]

    def target(self, sample_set: SampleSet, rows: NDArray[np.int64], hidden: Tensor) -> Tensor:
        """Return the head's input (n, target_dim) for samples ``rows`` (n,) of the set. ``hidden`` (n, d) are their states."""
        samples = sample_set.samples
        videos, inverse = np.unique(samples.video[rows], return_inverse=True)
        c, put, video = self.corpus.content, self.put, samples.video[rows]
        return self.net.target(
            hidden,
            put(samples.branch[rows, 1]),
            put(samples.last[rows]),
            put(numbers_read(samples, rows)),
            self.content(videos)[put(inverse)],
            put(sample_set.creator[rows]),
            put(c.static[video]),
            put(c.category[video]),
            put(c.language[video]),
            put(c.attributes[video]) if self.net.attributes is not None else None,
            put(samples.signals[rows]) if self.net.signals is not None else None,
        )

    def fit_scales(self, sample_set: SampleSet) -> None:
        """Fit the network's scales to the samples.

        The bins of the number encoding are fitted to the warm samples. The initial intensities are fitted to the
        usual rates of the samples' videos.
        """
        samples, exposure = sample_set.samples, self.corpus.exposure
        rows = self._scored_rows(np.unique(samples.video))
        counts, bounds_s, previous_s = (
            self.put(a[rows]) for a in (exposure.counts, exposure.bounds_s, exposure.previous_s)
        )
        self.net.intensity.fit(counts, bounds_s, previous_s, self.put(self.corpus.pace[exposure.before[rows]]))
        self.fit_numbers(sample_set)

    def fit_numbers(self, sample_set: SampleSet) -> None:
        """Fit the bins of the number encoding to the warm samples."""
        samples = sample_set.samples
        warm = np.flatnonzero(~samples.cold)
        if len(warm):
            warm = warm[np.linspace(0, len(warm) - 1, min(len(warm), 50_000)).astype(np.int64)]
            static = self.corpus.content.static[samples.video[warm]]
            self.net.numbers.fit(
                torch.from_numpy(
                    np.concatenate([numbers_read(samples, warm), sample_set.creator[warm], static], axis=1)
                )
            )

    def alone(self, target: Tensor) -> Tensor:
        """Return the coefficients (n, N_PARTS, N_BASIS) of forecasts without neighbours."""
        out: Tensor = self.net.head(target, target.new_zeros(len(target), FUSED_DIM))
        return out

    def fused(self, target: Tensor, neighbours: NDArray[np.float32], mask: NDArray[np.float32]) -> Tensor:
        """Return the coefficients (n, N_PARTS, N_BASIS) of forecasts with neighbours (n, K, N_NEIGHBOUR) and their mask (n, K), K >= 0."""
        if not mask.shape[1]:
            return self.alone(target)
        out: Tensor = self.net.head(target, self.net.fusion(target, self.put(neighbours), self.put(mask)))
        return out

    def parts(self, samples: Samples, rows: NDArray[np.int64], coefficients: Tensor) -> Tensor:
        """Return the mean, the median and the steps of growth (n, J, N_PARTS) at the horizons of samples ``rows``, in log2 units.

        Unlike the growth of a forecast, mean and median may be negative, so that the loss still has a gradient at
        negative values.
        """
        growth = self._expected(samples, rows) if samples.expected.shape[1] else 0.0
        phi = basis(samples.age_s[rows][:, None], samples.horizon_s[rows], self._max_horizon_s, growth).astype(
            np.float32
        )
        return torch.einsum("njm,nqm->njq", self.put(phi), coefficients)

    def _expected(self, samples: Samples, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the growth (n, J) that the cascades of samples ``rows`` expect at their horizons."""
        return on_grid_at(samples.expected[rows], samples.horizon_s[rows], self._max_horizon_s)

    def loss(self, samples: Samples, rows: NDArray[np.int64], parts: Tensor) -> Tensor:
        """Return the mean loss over the labels of samples ``rows``: the pinball loss of the quantiles plus the Huber loss of the mean.

        With a cascade, the growth that the cascade expects is an additional label of the mean and the median. This
        label has more weight if there are few videos.
        """
        growth = self.put(samples.growth[rows].astype(np.float32))
        known = torch.isfinite(growth)
        growth = torch.nan_to_num(growth)
        mean, median, lower, upper = parts.split([1, 1, MEDIAN, MEDIAN], dim=-1)
        quantiles = torch.cat([median - lower.flip(-1).cumsum(-1).flip(-1), median, median + upper.cumsum(-1)], dim=-1)
        error = growth.unsqueeze(-1) - quantiles
        pinball = torch.maximum(self._levels * error, (self._levels - 1) * error) @ self._level_weights
        squared = F.huber_loss(mean[..., 0], growth, reduction="none", delta=self._delta)
        if samples.expected.shape[1]:
            expected = self.put(self._expected(samples, rows).astype(np.float32)).unsqueeze(-1)
            centre = parts[..., :2]
            deviation = F.huber_loss(centre, expected.expand_as(centre), reduction="none", delta=self._delta)
            squared = squared + self._expected_weight * deviation.mean(-1)
        weight = known.float() * self.put(np.where(samples.cold[rows], _COLD_WEIGHT, 1.0).astype(np.float32)).unsqueeze(
            -1
        )
        return ((pinball + self._squared_weight * squared) * weight).sum() / weight.sum().clamp(min=1e-6)

    def _scored_rows(self, videos: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the exposure of ``videos`` (n,)."""
        offsets = self.corpus.exposure.offsets
        sizes = offsets[videos + 1] - offsets[videos]
        first = np.repeat(offsets[videos] - np.append(0, np.cumsum(sizes)[:-1]), sizes)
        return np.asarray(first + np.arange(sizes.sum()))

    def log_likelihood(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, int]:
        """Return the summed log-likelihood of the batch, and the number of scored counts. ``hidden`` is a result of ``scan``."""
        exposure, offsets = self.corpus.exposure, self.corpus.tokens.offsets
        rows = self._scored_rows(batch.videos)
        column = np.repeat(
            np.arange(len(batch.videos)), exposure.offsets[batch.videos + 1] - exposure.offsets[batch.videos]
        )
        before = exposure.before[rows]
        # The first state is the state before any token.
        states = torch.cat([self.net.intensity.start.expand(1, hidden.shape[1], -1), hidden])
        step = np.where(before >= 0, before - offsets[batch.videos][column] + 1, 0)
        pace, previous_s, bounds_s, counts = (
            self.put(a)
            for a in (
                self.corpus.pace[before],
                exposure.previous_s[rows],
                exposure.bounds_s[rows],
                exposure.counts[rows],
            )
        )
        value = self.net.intensity.log_likelihood(
            states[self.put(step), self.put(column)], pace, previous_s, bounds_s, counts
        )
        return value.sum(), int(np.isfinite(exposure.bounds_s[rows][exposure.token[rows] >= 0, :, 0]).sum())

    @torch.no_grad()
    def every_content(self) -> NDArray[np.float32]:
        """Return the content vectors (V, CONTENT_DIM) of all videos of the corpus, without dropout."""
        self.net.eval()
        n = len(self.corpus.content.category)
        parts = np.array_split(np.arange(n), max(1, n // _ROWS))
        return np.concatenate([self.content(part).cpu().numpy() for part in parts])

    @torch.no_grad()
    def encode(self, sample_set: SampleSet) -> Encoded:
        """Return stage one's states and parts of growth of samples, without dropout."""
        samples = sample_set.samples
        self.net.eval()
        hidden = np.zeros((len(sample_set), self.net.mhp.shape.d_model), np.float32)
        out = np.zeros((*samples.growth.shape, N_PARTS), np.float32)
        for batch in batches(samples, self.batch_tokens):
            _, read = self.scan(samples, batch)
            rows = batch.rows[batch.real]
            parts = self.parts(samples, rows, self.alone(self.target(sample_set, rows, read)))
            hidden[rows], out[rows] = read.cpu().numpy(), parts.clamp(min=0).cpu().numpy()
        return Encoded(hidden, out)

    @torch.no_grad()
    def predict(
        self, sample_set: SampleSet, hidden: NDArray[np.float32], found: NeighbourInputs
    ) -> NDArray[np.float32]:
        """Return the parts of growth (N, J, N_PARTS) of the model after both stages.

        ``hidden`` (N, d_model) are stage one's states, and ``found`` are the neighbours.
        """
        samples = sample_set.samples
        self.net.eval()
        out = np.zeros((*samples.growth.shape, N_PARTS), np.float32)
        for start in range(0, len(sample_set), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(sample_set)))
            target = self.target(sample_set, rows, self.put(hidden[rows]))
            coefficients = self.fused(target, found.features[rows], found.mask[rows])
            out[rows] = self.parts(samples, rows, coefficients).clamp(min=0).cpu().numpy()
        return out

    @torch.no_grad()
    def mean_log_likelihood(self, samples: Samples) -> float:
        """Return the log-likelihood per token and type over the videos of ``samples``, silences included.

        The mean is NaN if the network has no Mamba-Hawkes process.
        """
        if not self.net.parts.mhp:
            return float("nan")
        self.net.eval()
        total, number = 0.0, 0
        for batch in batches(samples, self.batch_tokens, scanned=self.scored_tokens):
            hidden, _ = self.scan(samples, batch)
            value, counts = self.log_likelihood(batch, hidden)
            total, number = total + float(value), number + counts
        return total / number if number else float("nan")
