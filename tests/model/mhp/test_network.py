"""The Mamba-Hawkes process: serving kernel against training network, gradients, integrals, and the cache of states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.features.tokens import Tokens, n_features
from model.mhp.backend import States
from model.mhp.backends.cpu import CPUBackend
from model.mhp.likelihood import softplus_integral
from model.mhp.network import MambaHawkes
from model.mhp.scan import selective_scan
from model.mhp.shape import MHPShape
from model.mhp.state_pool import StatePool

SHAPE = MHPShape(n_features(2), 2)
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def network() -> MambaHawkes:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = MambaHawkes(SHAPE)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name.endswith(("clock_mix", "norm.weight", "norm_f.weight", ".D")):
                    p.add_(0.3 * torch.randn_like(p))
    return net.eval()


@pytest.fixture(scope="module")
def backend(network: MambaHawkes) -> CPUBackend:
    return CPUBackend(SHAPE, {f"mhp.{k}": v.numpy().astype(np.float32) for k, v in network.state_dict().items()})


def random_tokens(n: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (n, SHAPE.n_features)).astype(np.float32)
    return features, np.exp(rng.normal(-2, 2, (n, 2))).astype(np.float32)


def prefix(features: Floats, clock: Floats) -> np.ndarray:
    """A hash of each token and all tokens before it."""
    digests, digest = [], 0
    for row in np.concatenate([features, clock], axis=1):
        digest = hash((digest, row.tobytes())) & (2**64 - 1)
        digests.append(digest)
    return np.array(digests, dtype=np.uint64)


def of_features(sequences: list[tuple[Floats, Floats]], pending: list[bool] | None = None) -> Tokens:
    """Tokens with the fields that a StatePool reads; all sequences have the same read token."""
    s = len(sequences)
    features, clock = (np.concatenate([x[i] for x in sequences]) for i in (0, 1))
    n = len(features)
    read_features, read_clock = random_tokens(1, 999)
    return Tokens(
        np.cumsum([0, *(len(f) for f, _ in sequences)]),
        features,
        clock,
        np.zeros((n, 3)),
        np.zeros((n, 2)),
        np.ones((n, 2), np.bool_),
        np.array(pending or [False] * s),
        read_features.repeat(s, 0),
        read_clock.repeat(s, 0),
        np.zeros((s, 2)),
        np.zeros(s),
        np.concatenate([prefix(*x) for x in sequences]),
        np.zeros(s),
    )


def relative(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("n", [1, 10, 700])
def test_a_scan_equals_single_steps_and_the_network(n: int, network: MambaHawkes, backend: CPUBackend) -> None:
    features, clock = random_tokens(n, n)
    scanned, stepped = backend.new_states(1), backend.new_states(2)
    slot = np.array([0])
    last = backend.advance(scanned, slot, np.array([0, n]), features, clock)
    steps = np.concatenate(
        [backend.advance(stepped, slot + 1, np.array([0, 1]), features[t : t + 1], clock[t : t + 1]) for t in range(n)]
    )
    np.testing.assert_array_equal(last[0], steps[-1])
    np.testing.assert_array_equal(scanned.state[0], stepped.state[1])
    np.testing.assert_array_equal(scanned.window[0], stepped.window[1])
    assert not stepped.state[0].any()

    positions = sorted({0, n // 2, n})
    c = len(positions)
    branch_features, branch_clock = random_tokens(2, 77)
    with torch.no_grad():
        for pending in (False, True):
            every, read = network(
                torch.from_numpy(features)[:, None],
                torch.from_numpy(clock)[:, None],
                torch.tensor([positions]),
                torch.from_numpy(branch_features).expand(1, c, 2, -1),
                torch.from_numpy(branch_clock).expand(1, c, 2, -1),
                torch.full((1, c), pending),
            )
            assert relative(steps, every[:, 0].numpy()) < 1e-5
            for i, position in enumerate(positions):
                own = backend.new_states(1)
                backend.advance(own, slot, np.array([0, position]), features, clock)
                first = 0 if pending else 1
                got = backend.advance(
                    own, slot, np.array([0, 2 - first]), branch_features[first:], branch_clock[first:]
                )
                assert relative(got[0], read[0, i].numpy()) < 1e-5


def test_a_batch_of_slots_equals_each_alone(backend: CPUBackend) -> None:
    sequences = [random_tokens(n, n) for n in (5, 0, 31, 1)]
    states = backend.new_states(6)
    slots = np.array([4, 0, 2, 5])
    features, clock = (np.concatenate([x[i] for x in sequences]) for i in (0, 1))
    together = backend.advance(states, slots, np.cumsum([0, 5, 0, 31, 1]), features, clock)
    for row, (f, k) in enumerate(sequences):
        alone = backend.new_states(1)
        hidden = backend.advance(alone, np.array([0]), np.array([0, len(f)]), f, k)
        np.testing.assert_array_equal(together[row], hidden[0])
        np.testing.assert_array_equal(states.state[slots[row]], alone.state[0])
    assert not together[1].any()


def test_scan_and_its_gradient_equal_a_float64_loop() -> None:
    g = torch.Generator().manual_seed(5)
    length, batch, inner, n = 23, 3, 8, 4
    gap = torch.rand(length, batch, inner, generator=g)
    jump = torch.randn(length, batch, inner, generator=g)
    b, c = (torch.randn(length, batch, n, generator=g) for _ in range(2))
    a = -torch.rand(n, inner, generator=g) * 2
    position = torch.tensor([[0, 5, 23], [1, 1, 22], [23, 10, 10]])
    weight_y, weight_cut = torch.randn(length, batch, inner, generator=g), torch.randn(batch, 3, n, inner, generator=g)

    def loop(gap, jump, b, c, a):  # type: ignore[no-untyped-def]
        z, states, ys = torch.zeros(batch, n, inner, dtype=torch.float64), [], []
        states.append(z)
        for t in range(length):
            z = torch.exp(gap[t, :, None] * a) * z + jump[t, :, None] * b[t, :, :, None]
            states.append(z)
            ys.append((z * c[t, :, :, None]).sum(1))
        cut = torch.stack([torch.stack([states[p][row] for p in position[row].tolist()]) for row in range(batch)])
        return torch.stack(ys), cut

    fast = [x.clone().requires_grad_() for x in (gap, jump, b, c, a)]
    slow = [x.double().requires_grad_() for x in (gap, jump, b, c, a)]
    gap, jump, b, c, a = fast
    results = [selective_scan(gap, jump, b, c, a, position), loop(*slow)]
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    for y, cut in results:
        ((y * weight_y).sum() + (cut * weight_cut).sum()).backward()
    for ours, exact in zip(fast, slow, strict=True):
        assert ours.grad is not None and exact.grad is not None
        assert exact.grad.abs().max() > 0.1
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


def test_softplus_integral_equals_quadrature() -> None:
    rng = np.random.default_rng(2)
    n = 300
    alpha = -np.exp(rng.uniform(-6, 4, n))
    c = rng.uniform(-8, 8, n)
    start = rng.uniform(0, 2, n) * (rng.random(n) < 0.7)
    end = start + np.exp(rng.uniform(-6, 3, n))
    got = softplus_integral(*(torch.from_numpy(x) for x in (alpha, c, start, end))).numpy()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for i in range(n):
        # Twenty nodes on each of 400 pieces: exact to rounding, and needs no scipy.
        edges = np.linspace(start[i], end[i], 401)
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        x = middle[:, None] + half[:, None] * nodes
        expected = (half[:, None] * weights * np.logaddexp(0, alpha[i] * x + c[i])).sum()
        assert got[i] == pytest.approx(expected, rel=1e-9, abs=1e-13), (alpha[i], c[i], start[i], end[i])


@pytest.mark.parametrize("changed", [0, 3, 63, 64, 100, 128, 199])
def test_a_state_after_a_late_row_equals_one_from_scratch(changed: int, backend: CPUBackend) -> None:
    features, clock = random_tokens(200, 1)
    late = features.copy()
    late[changed, 0] += 1
    pool = StatePool(backend, 4)
    before = pool.read(["a"], of_features([(features, clock)]))
    assert pool.rollbacks == 0
    after = pool.read(["a"], of_features([(late, clock)]))
    assert pool.rollbacks == 1
    scratch = StatePool(backend, 0).read(["a"], of_features([(late, clock)]))
    for got, expected, old in zip(after, scratch, before, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert changed < 100 or (got != old).any()
    again = pool.read(["a"], of_features([(late, clock)]))
    assert pool.rollbacks == 1 and pool.hits == 2 and pool.misses == 1
    np.testing.assert_array_equal(again[1], scratch[1])


@pytest.mark.parametrize("shorter", [0, 1, 63, 64, 65, 128, 150])
def test_a_state_at_an_earlier_now_equals_one_from_scratch(shorter: int, backend: CPUBackend) -> None:
    features, clock = random_tokens(200, 1)
    pool = StatePool(backend, 4)
    pool.read(["a"], of_features([(features, clock)]))
    tokens = of_features([(features[:shorter], clock[:shorter])])
    for got, expected in zip(pool.read(["a"], tokens), StatePool(backend, 0).read(["a"], tokens), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_eviction_changes_nothing(backend: CPUBackend) -> None:
    rng = np.random.default_rng(8)
    whole = {f"v{i}": random_tokens(150, 40 + i) for i in range(5)}
    seen = dict.fromkeys(whole, 0)
    pool, none = StatePool(backend, 2), StatePool(backend, 0)
    for _ in range(40):
        ids = [f"v{i}" for i in rng.integers(0, 5, rng.integers(1, 6))]
        for video in ids:
            seen[video] = min(seen[video] + int(rng.integers(0, 12)), 150)
        sequences = [tuple(x[: seen[v]] for x in whole[v]) for v in ids]
        tokens = of_features(sequences, [bool(len(f) and rng.random() < 0.5) for f, _ in sequences])  # type: ignore[arg-type]
        for got, expected in zip(pool.read(ids, tokens), none.read(ids, tokens), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert pool.used <= 2
    assert pool.evictions > 10 and pool.hits > 0
    assert none.used == none.hits == none.evictions == 0


def test_a_state_that_failed_halfway_is_dropped(backend: CPUBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    features, clock = random_tokens(20, 1)
    pool = StatePool(backend, 2)
    pool.read(["a"], of_features([(features[:10], clock[:10])]))
    plain = backend.advance

    def advance_and_fail(states: States, *args: Any) -> Floats:
        plain(states, *args)
        raise MemoryError

    monkeypatch.setattr(backend, "advance", advance_and_fail)
    tokens = of_features([(features, clock)])
    with pytest.raises(MemoryError):
        pool.read(["a"], tokens)
    monkeypatch.undo()
    assert pool.used == 0
    for got, expected in zip(pool.read(["a"], tokens), StatePool(backend, 0).read(["a"], tokens), strict=True):
        np.testing.assert_array_equal(got, expected)
