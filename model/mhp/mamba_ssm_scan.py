"""The selective scan for training on CUDA. The scan uses mamba-ssm's kernel and the gradient of this kernel.

mamba-ssm computes z <- exp(dt A) z + dt B x and y = C z. Our scan decays by D and jumps by w B, and its state is read
at cuts. A cut is a position between two tokens. Each of our tokens becomes two kernel tokens. The first one decays
the state (dt = D, x = 0). The second one makes the state jump, and y is read after the jump. The second token has a
dt that is too small to decay the state in float32, and its x is w / dt.

A single kernel token with x = w / D would give inaccurate gradients. The gradient of D would be the difference of two
terms that grow as 1 / D.

The state at a cut is read by n additional kernel tokens that do not change the state. The k-th of these tokens reads
y = z_k.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch
from torch import Tensor

_NO_GAP: Final = 1e-8
"""Gap of a token that must not decay the state. In float32, exp(-1e-8 |A|) is 1."""


class ScanKernel(Protocol):
    """mamba-ssm's ``selective_scan_fn``, which is differentiable.

    The function takes x and dt (B, D, L), a (D, n), b and c (B, n, L), and returns y (B, D, L).
    """

    def __call__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Any: ...  # noqa: D102


def kernel_of_mamba_ssm() -> ScanKernel | None:
    """Return the kernel of the installed mamba-ssm. Return None if mamba-ssm is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    kernel: ScanKernel = selective_scan_fn
    return kernel


def scan_by(
    kernel: ScanKernel, gap: Tensor, jump: Tensor, b: Tensor, c: Tensor, a: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the scan of ``model.mhp.scan.SelectiveScan`` with a kernel. Shapes are as in SelectiveScan. All arrays are float32."""
    length, batch, inner = gap.shape
    n, cuts = a.shape[0], position.shape[1]
    row = torch.arange(batch, device=gap.device).unsqueeze(1)
    # Each cut is placed after the tokens that are read before it, and after all earlier cuts.
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
