"""The selective scan of training on CUDA, by mamba-ssm's kernel and its gradient.

mamba-ssm computes z <- exp(dt A) z + dt B x and y = C z. Our scan decays by D and jumps by w B, and its state is read at cuts. So each
of our tokens becomes two kernel tokens: one that decays (dt = D, x = 0), and one that jumps and is read (dt = 0 to within float32,
x = w / dt). With a single token, where x = w / D, the gradient of D would be a difference of two terms that grow as 1 / D. A state at a
cut is read by n more tokens that change nothing: token k reads y = z_k.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch
from torch import Tensor

_NO_GAP: Final = 1e-8
"""Gap of a token that must not decay the state: exp(-1e-8 |A|) is 1 in float32."""


class ScanKernel(Protocol):
    """mamba-ssm's ``selective_scan_fn``: x, dt (B, D, L), a (D, n), b, c (B, n, L) -> y (B, D, L), differentiable."""

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Any: ...  # noqa: D102


def kernel_of_mamba_ssm() -> ScanKernel | None:
    """The kernel of the installed mamba-ssm; None if it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    kernel: ScanKernel = selective_scan_fn
    return kernel


def scan_by(
    kernel: ScanKernel, gap: Tensor, jump: Tensor, b: Tensor, c: Tensor, a: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """The scan of ``model.mhp.scan.SelectiveScan`` by a kernel: the same shapes, float32."""
    length, batch, inner = gap.shape
    n, cuts = a.shape[0], position.shape[1]
    row = torch.arange(batch, device=gap.device).unsqueeze(1)
    # A cut is placed behind the tokens it has read and behind the cuts before it.
    order = torch.argsort(position, dim=1, stable=True)
    rank = torch.argsort(order, dim=1)
    cut_at = (2 * position + n * rank).unsqueeze(-1) + torch.arange(n, device=gap.device)
    token = torch.arange(length, device=gap.device)
    before = (position.unsqueeze(-1) <= token).sum(1)
    decay_at = 2 * token + n * before
    jump_at = decay_at + 1

    total = 2 * length + n * cuts
    dt = gap.new_full((batch, total, inner), _NO_GAP).index_put((row, decay_at), gap.transpose(0, 1))
    x = gap.new_zeros(batch, total, inner).index_put((row, jump_at), jump.transpose(0, 1) / _NO_GAP)
    bs = gap.new_zeros(batch, total, n).index_put((row, jump_at), b.transpose(0, 1))
    reads = torch.eye(n, device=gap.device, dtype=gap.dtype).expand(batch, cuts, n, n)
    cs = gap.new_zeros(batch, total, n).index_put((row, jump_at), c.transpose(0, 1))
    cs = cs.index_put((row.unsqueeze(-1), cut_at), reads)
    y = kernel(
        x.transpose(1, 2).contiguous(),
        dt.transpose(1, 2).contiguous(),
        a.t().contiguous(),
        bs.transpose(1, 2).contiguous(),
        cs.transpose(1, 2).contiguous(),
    ).transpose(1, 2)
    return y[row, jump_at].transpose(0, 1), y[row.unsqueeze(-1), cut_at]
