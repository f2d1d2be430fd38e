"""Sizes of the Mamba-Hawkes network. Training and every serving backend use them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MHPShape:
    """Sizes of the network.

    ``n_features`` is the number of features of a token, and ``n_types`` the number of engagement types. The other
    sizes have Mamba's own names. ``d_inner`` is expand * d_model.
    """

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
        """Number of channels of the state-space layer."""
        return self.expand * self.d_model
