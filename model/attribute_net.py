"""The network that reads a video's attributes (PyTorch). It is used for training and for ONNX export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.features.attributes import AttributeLayout

_DIM = 8
"""Width of the embedding of a known value."""
_BINS = 8
"""Number of bins of a number."""
_DROPPED = 0.1
"""Fraction of the attributes that are treated as missing in training, so that the mask is learned."""


class AttributeNet(nn.Module):
    """Encodes the attribute features of ``model.features.attributes``.

    A number is encoded piecewise linearly (Gorishniy et al. 2022). Its bins are evenly spaced, because the feature is
    a quantile already. A bag of values is encoded by the mean of the values' embeddings.
    """

    def __init__(self, layout: AttributeLayout) -> None:
        super().__init__()
        self.layout = layout
        self.values = nn.Parameter(torch.randn(max(layout.width, 1), _DIM) * 0.05)
        self.register_buffer("starts", torch.arange(_BINS) / _BINS)
        self.dim = len(layout.number_of) * (_BINS + 1) + len(layout.bag_of) * _DIM

    starts: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return the encoding (N, dim) of ``features`` (N, layout.width)."""
        n = len(self.layout.number_of)
        attributes = sorted({*self.layout.number_of, *self.layout.bag_of})
        kept = torch.ones_like(features[:, :1])
        parts = []
        for i in attributes:
            if self.training:
                kept = (torch.rand_like(features[:, :1]) >= _DROPPED).to(features.dtype)
            if i in self.layout.number_of:
                at = self.layout.number_of[i]
                number, mask = features[:, at : at + 1], features[:, n + at : n + at + 1] * kept
                parts += [((number - self.starts) * _BINS).clamp(0, 1) * mask, mask]
            if i in self.layout.bag_of:
                columns = self.layout.bag_of[i]
                table = self.values[columns]
                # The first row stands for a value that is missing or unknown.
                parts.append(kept * (features[:, columns] @ table) + (1 - kept) * table[:1])
        return torch.cat(parts, dim=-1)
