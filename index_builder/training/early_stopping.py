"""Early stopping: which pass over the data was the best one, by its loss on held-back videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class EarlyStopping:
    """The best pass of a stage so far, with its weights.

    ``patience`` passes without a better loss exhaust it; 0 never does, and then the last pass counts as the best. ``losses``
    of every pass; ``epoch`` of the best, -1 before any.
    """

    patience: int
    losses: list[float] = field(default_factory=list)
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, loss: float, net: nn.Module) -> None:
        """Note the pass that just ended."""
        best = self.losses[self.epoch] if self.epoch >= 0 else math.inf
        self.losses.append(loss)
        # A loss that is NaN (nothing to judge by) is never better, but the first weights are better than none.
        if not self.patience or self.epoch < 0 or loss < best or math.isnan(best):
            self.epoch = len(self.losses) - 1
            self.weights = {name: value.detach().clone() for name, value in net.state_dict().items()}

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.patience <= len(self.losses) - 1 - self.epoch

    @torch.no_grad()
    def restore(self, net: nn.Module) -> None:
        """Give ``net`` the best pass's weights, if there was a pass."""
        if self.weights:
            net.load_state_dict(self.weights)
