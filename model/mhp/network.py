"""The Mamba-Hawkes network for training (PyTorch).

The network is Mamba (Gu & Dao 2023) with a decay that runs on the video's own clock. Token i has the age t_i and the
convolved input u_i. delta_i = softplus(dt_proj(x_i)) is Mamba's selective step. Per channel:

    D_i = delta_i * (a * (t_i - t_{i-1}) / tau + (1 - a) * log((t_i + c) / (t_{i-1} + c)))
    z_i = exp(D_i A) z_{i-1} + delta_i B_i u_i,        y_i = C_i z_i + D u_i

The state decays over the real gap, mixed with the gap in log-age. An exponential decay in log-age is a power law in
age. At the token the state *jumps*, like the intensity of a Hawkes process. tau and a are learned for each channel.
With D_i = delta_i the network is exactly Mamba. The parameters have the same names as in mamba-ssm's ``Mamba``.

A forecast reads the state on a branch, which is a copy of the state. The branch first reads the token of the bin that
is still filling, if there is one. The branch then reads a read token, which represents the time without engagement
until ``now``. The state is copied at a *cut*, which is a position between two tokens. One causal scan over a video's
tokens serves all its cuts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mhp.scan import selective_scan
from model.mhp.shape import MHPShape


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight. The root mean square is taken over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., width) float32."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class MambaBlock(nn.Module):
    """One residual block: norm, in_proj, causal convolution, SiLU, selective scan on the real clock, gate and out_proj."""

    def __init__(self, shape: MHPShape) -> None:
        super().__init__()
        d, inner, n = shape.d_model, shape.d_inner, shape.d_state
        self.shape = shape
        self.norm = RMSNorm(d)
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, shape.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, shape.dt_rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(shape.dt_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, n + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d, bias=False)
        self.log_tau = nn.Parameter(torch.linspace(math.log(1.0), math.log(200.0), inner))
        self.clock_mix = nn.Parameter(torch.zeros(inner))
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(shape.dt_rank**-0.5), shape.dt_rank**-0.5)
            delta = torch.exp(torch.empty(inner).uniform_(math.log(0.02), math.log(0.5)))
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))

    def selective(self, u: Tensor, clock: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the selective parameters of tokens with the convolved input ``u`` (..., inner).

        Returns:
            The gap D (..., inner), the jump delta * u (..., inner), and the matrices B and C (..., n).
        """
        rank, n = self.shape.dt_rank, self.shape.d_state
        dt, b, c = self.x_proj(u).split([rank, n, n], dim=-1)
        delta = F.softplus(self.dt_proj(dt))
        mix = torch.sigmoid(self.clock_mix)
        gap = mix * clock[..., :1] * torch.exp(-self.log_tau) + (1 - mix) * clock[..., 1:]
        # In training, the linear layers may run in bfloat16. The clock and the state are always float32.
        delta = delta.float()
        return delta * gap, delta * u.float(), b.float(), c.float()

    def convolve(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the raw input, the gate and the convolved input of one token per row. Each has shape (..., inner).

        All three are computed from ``x`` (..., d_model) and the convolution's ``window`` (..., inner, d_conv - 1).
        """
        raw, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        full = torch.cat([window, raw.unsqueeze(-1)], dim=-1)
        return raw, gate, F.silu((full * self.conv1d.weight.squeeze(1)).sum(-1) + self.bias)

    @property
    def bias(self) -> Tensor:
        """The convolution's bias, (inner,)."""
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def emit(self, x: Tensor, u: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        """Return the residual output (..., d_model), computed from the scan's output ``y`` and the convolved input ``u`` (..., inner)."""
        out: Tensor = x + self.out_proj((y + self.D * u) * F.silu(gate))
        return out

    def forward(self, x: Tensor, clock: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scan ``x`` (L, B, d_model). ``position`` (B, C) is the number of tokens that are read before each cut.

        Returns:
            The output (L, B, d_model), the state at each cut (B, C, n, inner), and the convolution's window at each
            cut (B, C, inner, d_conv - 1), oldest token first.
        """
        rows = torch.arange(x.shape[1], device=x.device).unsqueeze(1)
        raw, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        width = self.shape.d_conv - 1
        padded = F.pad(raw, (0, 0, 0, 0, width, 0))
        taps = self.conv1d.weight.squeeze(1)
        # The convolution is a sum of d_conv shifted products. On a CPU, the backward pass of torch's depthwise convolution is
        # about ten times slower.
        mixed = self.bias.expand(raw.shape)
        for k in range(width + 1):
            mixed = mixed + padded[k : k + len(x)] * taps[:, k]
        u = F.silu(mixed)
        gap, jump, b, c = self.selective(u, clock)
        y, state = selective_scan(gap, jump, b, c, -torch.exp(self.A_log).t(), position)
        window = torch.stack([padded[position + k, rows] for k in range(width)], dim=-1)
        return self.emit(x, u, gate, y), state, window

    def step(self, x: Tensor, clock: Tensor, state: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read one token per row. Return the new output, state and window.

        ``x`` has shape (..., d_model), ``state`` (..., n, inner) and ``window`` (..., inner, d_conv - 1).
        """
        raw, gate, u = self.convolve(x, window)
        gap, jump, b, c = self.selective(u, clock)
        decay = torch.exp(gap.unsqueeze(-2) * -torch.exp(self.A_log).t())
        state = decay * state + jump.unsqueeze(-2) * b.unsqueeze(-1)
        return (
            self.emit(x, u, gate, (state * c.unsqueeze(-1)).sum(-2)),
            state,
            torch.cat([window[..., 1:], raw.unsqueeze(-1)], dim=-1),
        )


class MambaHawkes(nn.Module):
    """Computes hidden states from tokens: after every token, and at every cut as read on a branch."""

    def __init__(self, shape: MHPShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(shape.n_features, shape.d_model)
        self.blocks = nn.ModuleList(MambaBlock(shape) for _ in range(shape.n_layers))
        self.norm_f = RMSNorm(shape.d_model)

    def forward(
        self,
        features: Tensor,
        clock: Tensor,
        position: Tensor,
        branch_features: Tensor,
        branch_clock: Tensor,
        pending: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Scan all tokens, then read each cut on its branch.

        Args:
            features: (L, B, F) float32 features of committed tokens (their bins are complete), padded at the end.
            clock: (L, B, 2) float32 clock of committed tokens.
            position: (B, C) int64, number of tokens that are committed before each cut.
            branch_features: (B, C, 2, F) features of two tokens: the token of the bin that is still filling, and the
                read token.
            branch_clock: (B, C, 2, 2) clock of these two tokens.
            pending: (B, C) bool, whether the first of these two tokens exists.

        Returns:
            Hidden states after every token (L, B, d_model), and hidden states as read at every cut (B, C, d_model).
        """
        x = self.embed(features).float()
        branch = [self.embed(branch_features[:, :, 0]).float(), self.embed(branch_features[:, :, 1]).float()]
        for block in self.blocks:
            assert isinstance(block, MambaBlock)
            x, state, window = block(x, clock, position)
            y, after, after_window = block.step(branch[0], branch_clock[:, :, 0], state, window)
            state = torch.where(pending[..., None, None], after, state)
            window = torch.where(pending[..., None, None], after_window, window)
            branch = [y, block.step(branch[1], branch_clock[:, :, 1], state, window)[0]]
        return self.norm_f(x), self.norm_f(branch[1])
