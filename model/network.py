"""The trained networks around the Mamba-Hawkes process (PyTorch): content network, neighbour fusion and forecast head.

This module is used for training and for ONNX export. The service runs the exported graphs instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ablation import WHOLE, Ablation
from model.attribute_net import AttributeNet
from model.bank.neighbours import N_NEIGHBOUR, RECENCY, SIMILARITY
from model.cascade import N_CASCADE
from model.features.attributes import AttributeLayout
from model.features.creator import N_CREATOR
from model.features.schema import N_STATIC
from model.features.summary import n_summary
from model.mhp.likelihood import IntensityHead
from model.mhp.network import MambaHawkes
from model.mhp.shape import MHPShape
from model.quantiles.head import MEDIAN, N_BASIS, N_CENTRE, N_PARTS, N_STEPS
from model.signal_net import SignalNet

SENTENCE_DIM = 384
NGRAM_DIM = 16
CONTENT_DIM = 48
FUSED_DIM = 48
HEAD_DIM = 224
SMALL_HEAD_DIM = 64
N_BINS = 8
NAME_DIM = 8
_MIN_WIDTH = 1e-3
_CASCADE_START = (0.6, 0.1, 0.1, 0.2, 0.2, 0.15, 0.1)
"""Growth that the head forecasts before training, as fractions of the growth that a cascade expects. The first number
is for the lowest quantile, and the others are for the steps up from one quantile to the next. The mean starts at the
median."""
_START = -2.5
_STEP_START = -3.6
_CASCADE_BIAS = -4.5
"""Biases of the head's output before training. Three steps together start as wide as the lowest quantile is high."""


class ContentNet(nn.Module):
    """Computes the content vector of a video from its text, category, language and static features."""

    def __init__(self, n_categories: int, n_languages: int, dropout: float, *, silent: bool = False) -> None:
        """Create the network. If ``silent`` is true, the content vector is always zero."""
        super().__init__()
        self.silent = silent
        self.sentence = nn.Linear(SENTENCE_DIM, 32)
        self.no_sentence = nn.Parameter(torch.zeros(32))
        self.no_ngrams = nn.Parameter(torch.zeros(NGRAM_DIM))
        self.category = nn.Embedding(n_categories + 1, 8)
        self.language = nn.Embedding(n_languages + 1, 8)
        self.drop_text = nn.Dropout(dropout)
        self.mix = nn.Sequential(
            nn.Linear(32 + NGRAM_DIM + 16 + N_STATIC, 96), nn.SiLU(), nn.Dropout(0.1), nn.Linear(96, CONTENT_DIM)
        )

    def forward(
        self, sentence: Tensor, ngrams: Tensor, has_text: Tensor, category: Tensor, language: Tensor, static: Tensor
    ) -> Tensor:
        """Return content vectors (N, CONTENT_DIM).

        Args:
            sentence: (N, 384) sentence embeddings.
            ngrams: (N, NGRAM_DIM) mean n-gram embeddings.
            has_text: (N, 1) 1 if the video has a text, else 0.
            category: (N,) category indices.
            language: (N,) language indices.
            static: (N, N_STATIC) static features.
        """
        text = torch.cat(
            [
                has_text * self.sentence(sentence) + (1 - has_text) * self.no_sentence,
                has_text * ngrams + (1 - has_text) * self.no_ngrams,
            ],
            dim=-1,
        )
        out: Tensor = self.mix(
            torch.cat([self.drop_text(text), self.category(category), self.language(language), static], dim=-1)
        )
        return out * 0 if self.silent else out


class Fusion(nn.Module):
    """Bipolar cross-attention between a target video and its neighbours.

    Positive attention, softmax(s), pools the neighbours that resemble the target. Negative attention, softmax(-s),
    pools the neighbours that differ from the target. An MLP reads both pooled values and their products with the
    target. The block is taken from MMRA. Its score s is MMRA's similarity plus a learned term.
    """

    def __init__(self, target_dim: int) -> None:
        super().__init__()
        width = 48
        self.query = nn.Linear(target_dim, width)
        self.key = nn.Linear(N_NEIGHBOUR, width)
        self.value = nn.Sequential(nn.Linear(N_NEIGHBOUR, width), nn.SiLU(), nn.Linear(width, width))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.fading = nn.Parameter(torch.tensor(0.5))
        self.out = nn.Sequential(nn.Linear(5 * width, 96), nn.SiLU(), nn.Dropout(0.1), nn.Linear(96, FUSED_DIM))

    def forward(self, target: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        """Return fused vectors (N, FUSED_DIM). The vector of a target without neighbours is 0.

        Args:
            target: (N, D) target vectors.
            neighbours: (N, K, N_NEIGHBOUR) features of up to K neighbours.
            mask: (N, K), 1 for a real neighbour and 0 for padding.
        """
        query = self.query(target)
        value = self.value(neighbours)
        learned = (self.key(neighbours) * query.unsqueeze(1)).sum(-1) / query.shape[-1] ** 0.5
        # The factor 4 multiplies the neighbours' similarity, not the temperature. Some ONNX exporters fail if a
        # constant multiplies a scalar parameter.
        # At first, the weight of a neighbour from d days ago falls as (1 + d)^-0.5.
        score = (
            learned
            + self.temperature * (4 * neighbours[..., SIMILARITY])
            - self.fading * (3 * neighbours[..., RECENCY])
        )
        absent = (mask - 1) * 1e4
        positive = (torch.softmax(score + absent, -1).unsqueeze(-1) * value).sum(1)
        negative = (torch.softmax(-score + absent, -1).unsqueeze(-1) * value).sum(1)
        fused: Tensor = self.out(torch.cat([query, positive, negative, query * positive, query * negative], dim=-1))
        return fused * mask.amax(-1, keepdim=True)


class Numbers(nn.Module):
    """Piecewise linear encoding of numbers (Gorishniy et al. 2022).

    Each number has N_BINS bins. The encoding holds one value per bin: 0 if the number lies below the bin, 1 if it
    lies above the bin, and the relative position if it lies inside the bin. The bin edges are quantiles of the
    training data. With this encoding, a network can learn thresholds as easily as a tree does.
    """

    edges: Tensor

    def __init__(self, n_numbers: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(-1, 1, N_BINS + 1).repeat(n_numbers, 1))
        self.dim = n_numbers * N_BINS

    def fit(self, numbers: Tensor) -> None:
        """Set the bin edges to quantiles of ``numbers`` (N, n_numbers)."""
        levels = torch.linspace(0, 1, N_BINS + 1)
        self.edges.copy_(torch.quantile(numbers.cpu().double(), levels.double(), dim=0).t())

    def forward(self, numbers: Tensor) -> Tensor:
        """Encode ``numbers`` (N, n_numbers). Return (N, n_numbers * N_BINS) values in [0, 1]."""
        low, width = self.edges[:, :-1], (self.edges[:, 1:] - self.edges[:, :-1]).clamp(min=_MIN_WIDTH)
        return ((numbers.unsqueeze(-1) - low) / width).clamp(0, 1).flatten(1)


class HeadNet(nn.Module):
    """Computes the coefficients of the forecast head (``model.quantiles.head``).

    The normal head is one residual network. This network outputs the mean, the lowest quantile and the steps up from
    one quantile to the next.

    If there are few training videos, two small plain networks overfit less. The first network outputs the mean and the
    median. The second network outputs the steps. The networks are separate because the squared error of the mean would
    dominate the training of a shared network.
    """

    def __init__(self, target_dim: int, dropout: float, *, small: bool, from_cascade: bool) -> None:
        """Create the head.

        If ``from_cascade`` is true, untrained forecasts are close to the growth that a cascade expects. Otherwise
        untrained forecasts are close to zero growth.
        """
        super().__init__()
        self.from_cascade = from_cascade
        inputs = target_dim + FUSED_DIM
        self.body: nn.Module = _plain(inputs, dropout) if small else _Residual(inputs, dropout)
        self.spread = _plain(inputs, dropout) if small else None
        self.out = _output(SMALL_HEAD_DIM if small else HEAD_DIM, N_CENTRE if small else N_PARTS)
        self.spread_out = _output(SMALL_HEAD_DIM, N_STEPS) if small else None
        first = self.out.bias.view(-1, N_BASIS)
        steps = first[N_CENTRE:] if self.spread_out is None else self.spread_out.bias.view(N_STEPS, N_BASIS)
        with torch.no_grad():
            first[:N_CENTRE], steps[:] = _START, _STEP_START
            if from_cascade:
                low, *up = _CASCADE_START
                median = low + sum(up[:MEDIAN])
                first[:N_CENTRE], steps[:] = 0.0, _CASCADE_BIAS
                first[0, -1], first[1, -1] = median, median if small else low
                steps[:, -1] = torch.log(torch.expm1(torch.tensor(up)))

    def forward(self, target: Tensor, fused: Tensor) -> Tensor:
        """Return coefficients (N, N_PARTS, N_BASIS) from ``target`` (N, D) and ``fused`` (N, FUSED_DIM).

        The second axis holds the mean, the median and the steps from the lowest to the highest. All coefficients are
        non-negative, except that coefficients of mean and median may be negative if the model has a cascade.
        """
        inputs = torch.cat([target, fused], dim=-1)
        raw = self.out(self.body(inputs)).unflatten(-1, (-1, N_BASIS))
        first = raw[:, :N_CENTRE] if self.from_cascade else F.softplus(raw[:, :N_CENTRE])
        if self.spread is not None and self.spread_out is not None:
            steps = F.softplus(self.spread_out(self.spread(inputs)).unflatten(-1, (N_STEPS, N_BASIS)))
            return torch.cat([first, steps], dim=1)
        steps = F.softplus(raw[:, N_CENTRE:])
        median = first[:, 1:] + steps[:, :MEDIAN].sum(1, keepdim=True)
        return torch.cat([first[:, :1], median, steps], dim=1)


def _output(width: int, rows: int) -> nn.Linear:
    out = nn.Linear(width, rows * N_BASIS)
    nn.init.normal_(out.weight, std=0.02)
    return out


def _plain(inputs: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, SMALL_HEAD_DIM),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(SMALL_HEAD_DIM, SMALL_HEAD_DIM),
        nn.SiLU(),
        nn.Dropout(dropout),
    )


class _Residual(nn.Module):
    def __init__(self, inputs: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, HEAD_DIM)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(HEAD_DIM),
                nn.Linear(HEAD_DIM, 2 * HEAD_DIM),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * HEAD_DIM, HEAD_DIM),
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(HEAD_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return F.silu(self.norm(x))


class M3TR(nn.Module):
    """All trained networks together.

    ``target`` joins everything that is known about a video at a given time. If a part of the method is switched off,
    its output is zero here, and therefore also in the exported graphs.
    """

    def __init__(
        self,
        shape: MHPShape,
        n_categories: int,
        n_languages: int,
        ngram_buckets: int,
        *,
        text_dropout: float = 0.4,
        head_dropout: float = 0.15,
        parts: Ablation = WHOLE,
        cascade: bool = False,
        small_head: bool = False,
        attributes: AttributeLayout | None = None,
        n_signals: int = 0,
    ) -> None:
        """Create all networks.

        ``cascade`` says whether the inputs contain cascade features. ``small_head`` selects the small head, which is
        meant for few training videos. ``attributes`` is the layout of the attribute features, if there are any.
        ``n_signals`` is the number of signals that the network reads.
        """
        super().__init__()
        self.n_cascade = N_CASCADE if cascade else 0
        self.parts = parts
        self.ngrams = nn.EmbeddingBag(ngram_buckets, NGRAM_DIM, mode="mean")
        nn.init.normal_(self.ngrams.weight, std=0.05)
        self.mhp = MambaHawkes(shape)
        self.intensity = IntensityHead(shape.d_model, shape.n_types)
        self.content = ContentNet(n_categories, n_languages, text_dropout, silent=not parts.content)
        self.numbers = Numbers(n_summary(shape.n_types) + self.n_cascade + N_CREATOR + N_STATIC)
        self.category = nn.Embedding(n_categories + 1, NAME_DIM)
        self.language = nn.Embedding(n_languages + 1, NAME_DIM)
        # The growth of a category depends on the language, so each pair of category and language has its own embedding.
        self.audience = nn.Embedding((n_categories + 1) * (n_languages + 1), NAME_DIM)
        nn.init.normal_(self.audience.weight, std=0.05)
        self.attributes = AttributeNet(attributes) if attributes is not None and attributes.width else None
        self.target_dim = shape.d_model + 2 * shape.n_features + CONTENT_DIM + self.numbers.dim + 3 * NAME_DIM
        self.target_dim += self.attributes.dim if self.attributes is not None else 0
        self.signals = SignalNet(n_signals) if n_signals else None
        self.target_dim += self.signals.dim if self.signals is not None else 0
        self.fusion = Fusion(self.target_dim)
        self.head = HeadNet(self.target_dim, head_dropout, small=small_head, from_cascade=cascade)

    def target(
        self,
        hidden: Tensor,
        read: Tensor,
        last: Tensor,
        summary: Tensor,
        content: Tensor,
        creator: Tensor,
        static: Tensor,
        category: Tensor,
        language: Tensor,
        attributes: Tensor | None = None,
        signals: Tensor | None = None,
    ) -> Tensor:
        """Join all that is known about N videos into target vectors (N, target_dim).

        Args:
            hidden: (N, d_model) Mamba-Hawkes states.
            read: (N, F) features of the read tokens.
            last: (N, F) features of the newest tokens.
            summary: (N, n_summary) summaries. With a cascade, the N_CASCADE cascade features are appended.
            content: (N, CONTENT_DIM) content vectors.
            creator: (N, N_CREATOR) creator features.
            static: (N, N_STATIC) static features.
            category: (N,) category indices.
            language: (N,) language indices.
            attributes: (N, layout.width) attribute features. They are needed if the network reads attributes.
            signals: (N, n_signals * N_SIGNAL) features of signals. They are needed if the network reads signals.
        """
        audience = category * self.language.num_embeddings + language
        names = torch.cat([self.category(category), self.language(language), self.audience(audience)], dim=-1)
        if not self.parts.mhp:
            hidden = hidden * 0
        if not self.parts.content:
            names, static = names * 0, static * 0
        numbers = self.numbers(torch.cat([summary, creator, static], dim=-1))
        parts = [hidden, read, last, content, numbers, names]
        if self.attributes is not None:
            encoded = self.attributes(attributes)
            parts.append(encoded if self.parts.content else encoded * 0)
        if self.signals is not None:
            parts.append(self.signals(signals))
        return torch.cat(parts, dim=-1)
