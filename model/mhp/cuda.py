"""The serving backend on CUDA, by mamba-ssm's kernels.

mamba-ssm's step computes z <- exp(dt A) z + dt B x. Ours decays by D and jumps by w B, so the kernel is given dt = D
and x = w / D: the same equation, any D > 0. States live in slots; the step updates them in place by slot index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.mhp.backend import States
from model.mhp.network import MambaBlock, MambaHawkes
from model.mhp.shape import MHPShape

_LEAST_GAP: Final = 1e-6
"""Keeps x = w / D finite; a decay of exp(-1e-6 |A|) is 1 in float32."""


class CUDABackend:
    """Steps on a card; waves hold at most one token a slot.

    States are ``(layers, slots, d_inner, d_state)`` and ``(layers, slots, d_inner, d_conv - 1)``.
    """

    name = "cuda"

    def __init__(self, shape: MHPShape, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Take float32 weights under PyTorch's names (``mhp.blocks.0.in_proj.weight``, ...)."""
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update

        self.shape = shape
        self._update: Any = selective_state_update
        self._device = torch.device("cuda")
        net = MambaHawkes(shape)
        net.load_state_dict({
            name.removeprefix("mhp."): torch.from_numpy(value.copy())
            for name, value in weights.items() if name.startswith("mhp.")
        })  # fmt: skip
        self._net = net.eval().to(self._device)

    def new_states(self, slots: int) -> States:
        """Zeroed slabs for ``slots`` videos."""
        s = self.shape
        return States(
            torch.zeros(slots, s.n_layers, s.d_inner, s.d_state, device=self._device),
            torch.zeros(slots, s.n_layers, s.d_inner, s.d_conv - 1, device=self._device),
        )

    @torch.no_grad()
    def advance(
        self,
        states: States,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        features: NDArray[np.float32],
        clock: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See Backend.advance."""
        hidden = torch.zeros(len(slots), self.shape.d_model, device=self._device)
        lengths = np.diff(offsets)
        tokens = self._put(features), self._put(clock)
        for step in range(int(lengths.max(initial=0))):
            rows = np.flatnonzero(lengths > step)
            at = self._put(offsets[:-1][rows] + step)
            hidden[self._put(rows)] = self._wave(states, self._put(slots[rows]), tokens[0][at], tokens[1][at])
        out: NDArray[np.float32] = hidden.cpu().numpy()
        return out

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _wave(self, states: States, slots: Tensor, features: Tensor, clock: Tensor) -> Tensor:
        x = self._net.embed(features)
        for layer, block in enumerate(self._net.blocks):
            assert isinstance(block, MambaBlock)
            x = self._block(block, states.state[:, layer], states.window[:, layer], slots, x, clock)
        out: Tensor = self._net.norm_f(x)
        return out

    def _block(
        self, block: MambaBlock, state: Tensor, window: Tensor, slots: Tensor, x: Tensor, clock: Tensor
    ) -> Tensor:
        raw, gate, u = block.convolve(x, window[slots])
        window[slots] = torch.cat([window[slots][..., 1:], raw.unsqueeze(-1)], dim=-1)
        gap, jump, b, c = block.selective(u, clock)
        dt = gap.clamp(min=_LEAST_GAP)
        y = self._update(
            state, jump / dt, dt, -torch.exp(block.A_log), b, c, state_batch_indices=slots.to(torch.int32)
        )  # fmt: skip
        return block.emit(x, u, gate, y)
