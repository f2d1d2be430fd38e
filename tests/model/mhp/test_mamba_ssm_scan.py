"""The training scan by mamba-ssm's kernel equals the CPU scan in values and gradients, with a reference kernel and with the real one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.mhp.mamba_ssm_scan import ScanKernel, kernel_of_mamba_ssm, scan_by
from model.mhp.scan import SelectiveScan

N, INNER = 16, 6


def reference_kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """u, delta (B, D, L), A (D, n), B, C (B, n, L): the scan from zero as mamba-ssm documents it."""
    state, out = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = torch.exp(delta[..., t, None] * A) * state + (delta[..., t] * u[..., t])[..., None] * B[:, None, :, t]
        out.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(out, -1)


@pytest.fixture(params=["documented kernel", "mamba-ssm"])
def kernel(request: pytest.FixtureRequest) -> tuple[ScanKernel, str]:
    if request.param == "documented kernel":
        return reference_kernel, "cpu"
    found = kernel_of_mamba_ssm()
    if found is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device with mamba-ssm")
    return found, "cuda"


def inputs(length: int, batch: int, cuts: int, seed: int) -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    gap = torch.exp(torch.empty(length, batch, INNER).uniform_(-14, 1, generator=random))
    gap[0] = 0
    jump, b, c = (torch.randn(length, batch, width, generator=random) for width in (INNER, N, N))
    a = -torch.exp(torch.randn(N, INNER, generator=random))
    # Unordered cuts, several at one position, before the first token and behind the last.
    position = torch.randint(0, length + 1, (batch, cuts), generator=random)
    position[0] = torch.tensor([0, length, 0, length, *range(1, cuts - 3)])[:cuts].clamp(max=length)
    return [gap, jump, b, c, a], position


@pytest.mark.parametrize(("length", "batch", "cuts"), [(1, 1, 1), (5, 3, 4), (60, 2, 8)])
def test_values_and_gradients_equal_the_cpu_scan(
    length: int, batch: int, cuts: int, kernel: tuple[ScanKernel, str]
) -> None:
    results = []
    scan, device = kernel
    for ours in (True, False):
        leaves, position = inputs(length, batch, cuts, seed=length)
        if not ours:
            leaves, position = [leaf.to(device) for leaf in leaves], position.to(device)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        y, cut = SelectiveScan.apply(*leaves, position) if ours else scan_by(scan, *leaves, position)
        random = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=random).to(out.device) for out in (y, cut)]
        ((y * weights[0]).sum() + (cut * weights[1]).sum()).backward()
        results.append([y, cut, *(leaf.grad for leaf in leaves)])
    for ours_value, theirs_value in zip(*results, strict=True):
        assert ours_value is not None and theirs_value is not None
        assert ours_value.shape == theirs_value.shape
        difference = (ours_value - theirs_value.cpu()).abs().max() / ours_value.abs().max().clamp(min=1e-6)
        assert difference < 1e-4
    assert results[0][0].abs().max() > 0.1
