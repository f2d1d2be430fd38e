"""The network that reads the features of signals (PyTorch). It is used for training and for ONNX export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.features.signals import N_SIGNAL

_BINS = 8
_DROPPED = 0.1
"""Fraction of the signals that are treated as missing in training, so that their absence is learned."""


class SignalNet(nn.Module):
    """Encodes the features of ``model.features.signals``, each signal by itself.

    The level is encoded piecewise linearly, in evenly spaced bins. Small changes matter most, so a change is encoded
    by its signed square root.
    """

    starts: Tensor

    def __init__(self, n_signals: int) -> None:
        super().__init__()
        self.n_signals = n_signals
        self.register_buffer("starts", torch.arange(_BINS) / _BINS)
        n_changes = (N_SIGNAL - 3) // 2
        self.dim = n_signals * (N_SIGNAL + (1 + n_changes) * _BINS)

    def forward(self, features: Tensor) -> Tensor:
        """Return the encoding (N, dim) of ``features`` (N, n_signals * N_SIGNAL)."""
        signals = features.unflatten(1, (self.n_signals, N_SIGNAL))
        if self.training:
            signals = signals * (torch.rand_like(signals[..., :1]) >= _DROPPED).to(signals.dtype)
        known, level = signals[..., :1], signals[..., 1:2]
        change_known, change = signals[..., 3::2], signals[..., 4::2]
        root = torch.sign(change) * torch.sqrt(change.abs())
        parts = [
            signals,
            self._piecewise(level) * known,
            (self._piecewise(((root + 1) / 2).unsqueeze(-1)) * change_known.unsqueeze(-1)).flatten(2),
        ]
        return torch.cat(parts, dim=-1).flatten(1)

    def _piecewise(self, values: Tensor) -> Tensor:
        return ((values - self.starts) * _BINS).clamp(0, 1)
