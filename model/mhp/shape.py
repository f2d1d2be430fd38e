"""Sizes of the Mamba-Hawkes network, for training and for every serving backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MHPShape:
    """Sizes: ``n_features`` of a token, ``n_types``, and the others under Mamba's own names (``d_inner`` = expand * d_model)."""

    n_features: int
    n_types: int
    d_model: int = 64
    n_layers: int = 2
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int = 4

    @property
    def d_inner(self) -> int:
        """Channels of the state-space layer."""
        return self.expand * self.d_model
