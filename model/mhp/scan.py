"""The selective scan for training. On a CPU, the scan is one fused kernel with its own gradient.

The scan computes z_t = exp(D_t A) z_{t-1} + w_t B_t and y_t = C_t z_t. The computation is sequential in time and
vectorised over channels. The decay (L, B, inner, n) is never written to memory. All states are kept, because the
gradient and the reads at cuts need them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from model.mhp.fast_math import exp32
from model.mhp.mamba_ssm_scan import kernel_of_mamba_ssm, scan_by


@njit(parallel=True, cache=True, fastmath={"contract"})
def _forward(gap, jump, b, c, a, y, z):  # type: ignore[no-untyped-def]
    length, batch, inner = gap.shape
    n_state = a.shape[0]
    for row in prange(batch):
        for t in range(length):
            for n in range(n_state):
                bn, cn = b[t, row, n], c[t, row, n]
                if t == 0:
                    for d in range(inner):
                        z[t, row, n, d] = jump[t, row, d] * bn
                else:
                    for d in range(inner):
                        z[t, row, n, d] = exp32(gap[t, row, d] * a[n, d]) * z[t - 1, row, n, d] + jump[t, row, d] * bn
                for d in range(inner):
                    y[t, row, d] += cn * z[t, row, n, d]


@njit(parallel=True, cache=True, fastmath={"contract"})
def _backward(gap, jump, b, c, a, z, position, grad_y, grad_cut, grad_gap, grad_jump, grad_b, grad_c, grad_a):  # type: ignore[no-untyped-def]
    length, batch, inner = gap.shape
    n_state = a.shape[0]
    for row in prange(batch):
        carry = np.zeros((n_state, inner), dtype=np.float32)
        for t in range(length - 1, -1, -1):
            for cut in range(position.shape[1]):
                if position[row, cut] == t + 1:
                    for n in range(n_state):
                        for d in range(inner):
                            carry[n, d] += grad_cut[row, cut, n, d]
            for n in range(n_state):
                bn, cn = b[t, row, n], c[t, row, n]
                sum_b, sum_c = np.float32(0.0), np.float32(0.0)
                for d in range(inner):
                    g = carry[n, d] + cn * grad_y[t, row, d]
                    sum_c += grad_y[t, row, d] * z[t, row, n, d]
                    sum_b += g * jump[t, row, d]
                    grad_jump[t, row, d] += g * bn
                    carry[n, d] = g
                grad_b[t, row, n] = sum_b
                grad_c[t, row, n] = sum_c
                if t > 0:
                    for d in range(inner):
                        decay = exp32(gap[t, row, d] * a[n, d])
                        slope = carry[n, d] * z[t - 1, row, n, d] * decay
                        grad_gap[t, row, d] += slope * a[n, d]
                        grad_a[row, n, d] += slope * gap[t, row, d]
                        carry[n, d] *= decay


def _at_cuts(z: Tensor, position: Tensor) -> Tensor:
    rows = torch.arange(z.shape[1], device=z.device).unsqueeze(1)
    return z[(position - 1).clamp(min=0), rows] * (position > 0)[..., None, None]


class SelectiveScan(torch.autograd.Function):
    """Scans from a zero state. All inputs are on the CPU, and all except ``position`` are float32.

    The outputs are y (L, B, inner) and the states at the cuts (B, C, n, inner). The inputs are:

    - ``gap`` (L, B, inner): the decay D.
    - ``jump`` (L, B, inner): the jump w.
    - ``b`` and ``c`` (L, B, n): the matrices B and C.
    - ``a`` (n, inner): the matrix A.
    - ``position`` (B, C) int64: number of tokens that are read before each cut.
    """

    @staticmethod
    def forward(
        ctx: Any, gap: Tensor, jump: Tensor, b: Tensor, c: Tensor, a: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs that the class describes."""
        inputs = [x.detach().contiguous() for x in (gap, jump, b, c, a)]
        y = torch.zeros_like(inputs[0])
        z = inputs[0].new_empty((*gap.shape[:2], a.shape[0], gap.shape[2]))
        _forward(*(x.numpy() for x in inputs), y.numpy(), z.numpy())
        ctx.save_for_backward(*inputs, z, position)
        return y, _at_cuts(z, position)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, computed by the reversed recurrence."""
        gap, jump, b, c, a, z, position = ctx.saved_tensors
        grad_a = a.new_zeros((gap.shape[1], *a.shape))
        out = [torch.zeros_like(gap), torch.zeros_like(jump), torch.zeros_like(b), torch.zeros_like(c)]
        _backward(
            *(x.numpy() for x in (gap, jump, b, c, a, z, position)),
            *(g.contiguous().numpy() for g in grads),
            *(x.numpy() for x in out),
            grad_a.numpy(),
        )
        return (*out, grad_a.sum(0), None)


def selective_scan(
    gap: Tensor, jump: Tensor, b: Tensor, c: Tensor, a: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the scan on any device. The inputs and outputs have the shapes that ``SelectiveScan`` describes.

    On a CPU in float32, the fused kernel is used. On CUDA, mamba-ssm's kernel is used if it is installed. Otherwise a
    loop in PyTorch is used.
    """
    if gap.device.type == "cpu" and gap.dtype == torch.float32:
        y, cut = SelectiveScan.apply(gap, jump, b, c, a, position)  # type: ignore[no-untyped-call]
        return y, cut
    if gap.is_cuda and (kernel := kernel_of_mamba_ssm()) is not None:
        return scan_by(kernel, gap, jump, b, c, a, position)
    state = torch.zeros_like(jump[0].unsqueeze(-2) * b[0].unsqueeze(-1))
    states = []
    for t in range(len(gap)):
        state = torch.exp(gap[t].unsqueeze(-2) * a) * state + jump[t].unsqueeze(-2) * b[t].unsqueeze(-1)
        states.append(state)
    z = torch.stack(states)
    return (z * c.unsqueeze(-1)).sum(-2), _at_cuts(z, position)
