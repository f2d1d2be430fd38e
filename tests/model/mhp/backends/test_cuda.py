"""The CUDA backend equals the CPU backend, with reference kernels and, if there is a GPU, with mamba-ssm's kernels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from model.errors import M3TRError
from model.mhp.backends.cpu import CPUBackend
from model.mhp.backends.cuda import SCAN_FROM, CUDABackend, Kernels
from model.mhp.backends.select import choose_backend
from model.mhp.network import MambaHawkes
from model.mhp.state_pool import StatePool
from tests.model.mhp.test_network import SHAPE, of_features, random_tokens, relative


def update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    state_batch_indices: Tensor,
) -> Tensor:
    """state (slots, d, N), x, dt (batch, d), a (d, N), b, c (batch, N), D, dt_bias (d,). It updates the given slots in place.

    In mamba-ssm D and dt_bias are optional, but it fails without them.
    """
    at, spare = state_batch_indices, len(state) - 1
    dt = dt + dt_bias
    used = at[at != spare]
    assert len(used.unique()) == len(used), "a wave may contain each slot once, except the spare one"
    state[at] = torch.exp(dt[..., None] * a) * state[at] + (dt * x)[..., None] * b[:, None]
    return (state[at] * c[:, None]).sum(-1) + D * x


def scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, return_last_state: bool
) -> tuple[Tensor, Tensor]:
    """u, delta (B, D, L), a (D, N), b, c (B, N, L): the scan from zero."""
    assert return_last_state
    state, out = torch.zeros(*u.shape[:2], a.shape[1]), []
    for t in range(u.shape[2]):
        state = torch.exp(delta[..., t, None] * a) * state + (delta[..., t] * u[..., t])[..., None] * b[:, None, :, t]
        out.append((state * c[:, None, :, t]).sum(-1))
    return torch.stack(out, -1), state


@pytest.fixture(scope="module", params=["documented kernels", "mamba-ssm"])
def backends(request: pytest.FixtureRequest) -> tuple[CPUBackend, CUDABackend]:
    torch.manual_seed(3)
    network = MambaHawkes(SHAPE)
    weights = {f"mhp.{k}": v.numpy().astype(np.float32) for k, v in network.state_dict().items()}
    if request.param == "mamba-ssm":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return CPUBackend(SHAPE, weights), CUDABackend(SHAPE, weights)
    return CPUBackend(SHAPE, weights), CUDABackend(SHAPE, weights, device="cpu", kernels=Kernels(update, scan))


@pytest.mark.parametrize("n", [1, SCAN_FROM - 1, SCAN_FROM, 700])
def test_steps_and_scans_equal_the_cpus(n: int, backends: tuple[CPUBackend, CUDABackend]) -> None:
    features, clock = random_tokens(n, n)
    results = []
    for backend in backends:
        states, slot = backend.new_states(3), np.array([1])
        results.append(backend.advance(states, slot, np.array([0, n]), features, clock))
        # The states continue in the same way: by a step, by a scan, and by a step again.
        for more, seed in ((1, 5), (2 * SCAN_FROM, 6), (1, 7)):
            f, k = random_tokens(more, seed)
            results.append(backend.advance(states, slot, np.array([0, more]), f, k))
    for ours, theirs in zip(results[:4], results[4:], strict=True):
        assert np.abs(ours).max() > 0.1
        assert relative(theirs, ours) < 1e-3


def test_slots_of_all_lengths_in_one_call_equal_the_cpus(backends: tuple[CPUBackend, CUDABackend]) -> None:
    lengths = [5, 0, 31, 1, SCAN_FROM, 90]
    sequences = [random_tokens(n, n) for n in lengths]
    features, clock = (np.concatenate([x[i] for x in sequences]) for i in (0, 1))
    slots, offsets = np.array([4, 0, 2, 6, 1, 3]), np.cumsum([0, *lengths])
    results = []
    for backend in backends:
        states = backend.new_states(7)
        for _ in range(2):
            results.append(backend.advance(states, slots, offsets, features, clock))
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        assert relative(theirs, ours) < 1e-3
        assert not theirs[1].any()


@pytest.mark.parametrize("rows", [1, 2, 8, 33, 600])
def test_waves_of_any_size_equal_the_cpus(rows: int, backends: tuple[CPUBackend, CUDABackend]) -> None:
    results = []
    for backend in backends:
        states = backend.new_states(700)
        for seed in (rows, rows + 1):
            random = np.random.default_rng(seed)
            slots = random.permutation(700)[:rows]
            lengths = np.append(random.integers(0, 4, rows - 1), 3)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            results.append(backend.advance(states, slots, offsets, *random_tokens(int(offsets[-1]), seed)))
        results.append(np.array([np.abs(np.asarray(states.take_slot(slot)[0].tolist())).sum() for slot in range(700)]))
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        assert np.abs(ours).max() > 0
        assert relative(theirs, ours) < 1e-3


def test_states_from_the_cache_equal_the_cpus_from_scratch(backends: tuple[CPUBackend, CUDABackend]) -> None:
    cpu, cuda = backends
    features, clock = random_tokens(200, 1)
    late = features.copy()
    late[100, 0] += 1
    pool = StatePool(cuda, 2)
    for rows in ((features[:90], clock[:90]), (features, clock), (late, clock), (late[:150], clock[:150])):
        tokens = of_features([rows])
        for got, expected in zip(pool.read(["a"], tokens), StatePool(cpu, 0).read(["a"], tokens), strict=True):
            assert relative(got, expected) < 1e-3
    assert pool.rollbacks == 2


def test_without_mamba_ssm_the_cpu_is_used_and_a_warning_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {f"mhp.{k}": v.numpy().astype(np.float32) for k, v in MambaHawkes(SHAPE).state_dict().items()}
    monkeypatch.setattr("model.mhp.backends.select._cuda_present", lambda: True)
    for name in ("mamba_ssm", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, None)
    assert choose_backend("auto", SHAPE, weights).name == "cpu"
    assert "mamba-ssm" in caplog.text and "[gpu]" in caplog.text
    with pytest.raises(M3TRError, match=r"device: 'cuda'.*mamba-ssm.*\[gpu\]"):
        choose_backend("cuda", SHAPE, weights)
