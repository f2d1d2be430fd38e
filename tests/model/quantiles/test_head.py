"""The forecast head's mathematics, with and without the ramp of a cascade."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network import HeadNet
from model.quantiles.head import (
    MEDIAN,
    N_BASIS,
    N_CENTRE,
    N_GRID,
    N_PARTS,
    basis,
    counts_at,
    grid_growth,
    grid_parts,
    grid_s,
    growth_at,
    joined,
    moved,
)

MAX_HORIZON_S = 604_800.0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(0, 30 * 86_400.0))
def test_quantiles_are_ordered_and_never_fall(seed: int, signed: bool, age_s: float) -> None:
    rng = np.random.default_rng(seed)
    coefficients = rng.exponential(0.3, (4, N_PARTS, N_BASIS)).astype(np.float32)
    expected = np.cumsum(rng.exponential(0.1, (4, N_GRID + 1)), axis=1)
    expected -= expected[:, :1]
    if signed:  # With a cascade the coefficients of mean and median may be negative.
        coefficients[:, :N_CENTRE] = rng.normal(0, 0.5, (4, N_CENTRE, N_BASIS))
    centre, steps = grid_parts(coefficients, np.full(4, age_s), MAX_HORIZON_S, expected)
    stretch = rng.uniform(0.05, 5, steps.shape)
    for factors in (None, stretch):
        growth = grid_growth(centre, steps, factors)
        assert (growth >= 0).all() and (growth[:, 0] == 0).all()
        assert (np.diff(growth, axis=1) >= 0).all() and (np.diff(growth[..., 1:], axis=2) >= 0).all()
        row, horizon_s = np.arange(4).repeat(50), np.tile(np.sort(rng.uniform(1, MAX_HORIZON_S, 50)), 4)
        found = growth_at(growth, row, horizon_s, MAX_HORIZON_S).reshape(4, 50, -1)
        assert (np.diff(found, axis=1) >= 0).all() and (np.diff(found[..., 1:], axis=2) >= 0).all()


def test_the_last_ramp_is_the_growth_that_a_cascade_expects() -> None:
    age_s, expected = np.array([[3600.0]]), np.linspace(0, 2, N_GRID + 1)[None]
    phi = basis(age_s, grid_s(MAX_HORIZON_S)[None], MAX_HORIZON_S, expected)
    np.testing.assert_array_equal(phi[0, :, -1], expected[0])
    assert (basis(age_s, grid_s(MAX_HORIZON_S)[None], MAX_HORIZON_S)[..., -1] == 0).all()


def test_counts_are_finite_and_never_below_the_current_count() -> None:
    np.testing.assert_array_equal(counts_at(3.0, np.array([0.0, 1.0, 2.0])), [3.0, 7.0, 15.0])
    values = counts_at(1e15, np.array([0.0, 1e-20, 1e6, np.inf]))
    assert np.isfinite(values).all() and (values >= 1e15).all() and (np.diff(values) >= 0).all()


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("from_cascade", [False, True])
def test_steps_to_the_outer_quantiles_are_never_negative(small: bool, from_cascade: bool) -> None:
    torch.manual_seed(0)
    head = HeadNet(20, 0.5, small=small, from_cascade=from_cascade).eval()
    with torch.no_grad():
        values = head(100 * torch.randn(64, 20), torch.randn(64, 48))
    assert values.shape == (64, N_PARTS, N_BASIS)
    assert (values[:, N_CENTRE:] >= 0).all()
    assert bool((values[:, :N_CENTRE] >= 0).all()) != from_cascade


def test_before_training_a_forecast_is_near_its_cascade() -> None:
    torch.manual_seed(0)
    head = HeadNet(20, 0.5, small=True, from_cascade=True).eval()
    with torch.no_grad():
        coefficients = head(torch.randn(8, 20), torch.zeros(8, 48)).numpy()
    expected = np.broadcast_to(np.linspace(0, 3, N_GRID + 1), (8, N_GRID + 1))
    growth = grid_growth(*grid_parts(coefficients, np.full(8, 3600.0), MAX_HORIZON_S, expected))
    assert np.abs(growth[..., [0, 1 + MEDIAN]] - expected[..., None]).max() < 1.0
    assert (np.diff(growth[:, -1, 1:], axis=1) > 0).all()


def test_quantiles_are_the_median_and_sums_of_steps() -> None:
    steps = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = joined(np.array([7.0, 100.0]), steps)
    np.testing.assert_array_equal(found, [7, 93, 94, 96, 100, 108, 124, 156])
    stretched = joined(np.array([7.0, 100.0]), steps, np.array([1, 0.5, 1, 2, 0.1, 1]))
    # 0.5 x 6 is nearer to the median than 4, and 0.1 x 24 than 16: the inner neighbour's distance is kept.
    np.testing.assert_array_equal(stretched, [7, 93, 96, 96, 100, 116, 116, 156])


def test_the_median_is_moved_by_shares_of_the_step_beside_it() -> None:
    steps = np.tile([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], (3, 1))
    centre = np.tile([7.0, 100.0], (3, 1))
    np.testing.assert_array_equal(moved(centre, steps, np.array([0.0, 0.5, -0.25])), [[7, 100], [7, 104], [7, 99]])


def test_growth_between_grid_points_is_interpolated_for_each_video() -> None:
    x = np.linspace(0, 1, N_GRID + 1)
    growth = np.stack([np.arange(1.0, 9.0) * x[:, None], 10 * np.arange(1.0, 9.0) * x[:, None] ** 2])
    horizon_s = np.array([1.0, 5000.0, MAX_HORIZON_S, 77.0])
    row = np.array([0, 1, 1, 0])
    at = np.log1p(horizon_s / 60) / np.log1p(MAX_HORIZON_S / 60)
    wanted = [[np.interp(p, x, growth[r, :, q]) for q in range(8)] for r, p in zip(row, at, strict=True)]
    np.testing.assert_allclose(growth_at(growth, row, horizon_s, MAX_HORIZON_S), wanted, rtol=1e-12)
