"""Early stopping: finds the best pass over the data by its loss on holdout videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class EarlyStopping:
    """The best pass of a stage so far, with its weights.

    The stage is exhausted after ``patience`` passes without a lower loss. With ``patience`` 0, the stage is never
    exhausted, and the last pass is treated as the best. ``losses`` are the losses of all passes. ``epoch`` is the index
    of the best pass, or -1 before the first pass.
    """

    patience: int
    losses: list[float] = field(default_factory=list)
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, loss: float, net: nn.Module) -> None:
        """Record the loss of the pass that just ended, and keep its weights if this pass is the best."""
        best = self.losses[self.epoch] if self.epoch >= 0 else math.inf
        self.losses.append(loss)
        # A NaN loss (of an empty holdout) is never better than another loss. The weights of the first pass are kept
        # in any case.
        if not self.patience or self.epoch < 0 or loss < best or math.isnan(best):
            self.epoch = len(self.losses) - 1
            self.weights = {name: value.detach().clone() for name, value in net.state_dict().items()}

    @property
    def exhausted(self) -> bool:
        """Return whether the stage should stop."""
        return 0 < self.patience <= len(self.losses) - 1 - self.epoch

    @torch.no_grad()
    def restore(self, net: nn.Module) -> None:
        """Load the weights of the best pass into ``net``, if there was a pass."""
        if self.weights:
            net.load_state_dict(self.weights)
