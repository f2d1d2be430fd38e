"""Probabilities of passing a threshold: in order, and equal to the quantiles that they come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.quantiles.head import MEDIAN, N_GRID, QUANTILES, counts_at, grid_s
from model.quantiles.thresholds import CONFIDENCES, LIMITS, exceedance, growth_to, passing

MAX_HORIZON_S = 604_800.0


def growing(seed: int, scale: float = 0.1) -> np.ndarray:
    """Quantiles of growth on the grid (N_GRID + 1, len(QUANTILES)), in order along both axes, some of them equal."""
    rng = np.random.default_rng(seed)
    steps = rng.exponential(scale, (N_GRID + 1, len(QUANTILES))) * (rng.random((N_GRID + 1, len(QUANTILES))) < 0.7)
    steps[0] = 0
    return np.maximum.accumulate(np.cumsum(np.cumsum(steps, axis=1), axis=0), axis=1)


def test_the_probability_at_a_quantile_is_its_level() -> None:
    quantiles = np.array([[0.1, 0.2, 0.5, 1.0, 1.5, 2.5, 4.0]])
    found = exceedance(np.repeat(quantiles, 7, axis=0), quantiles[0])
    np.testing.assert_allclose(found, 1 - np.array(QUANTILES))
    between = exceedance(np.repeat(quantiles, 6, axis=0), (quantiles[0, 1:] + quantiles[0, :-1]) / 2)
    assert ((between < found[:-1]) & (between > found[1:])).all()
    beyond = exceedance(np.repeat(quantiles, 3, axis=0), np.array([5.0, 8.0, 1000.0]))
    assert 0.05 > beyond[0] > beyond[1] > beyond[2] == LIMITS[0]
    # Each further distance from the 0.9 to the 0.95 quantile about halves the probability.
    assert beyond[0] == pytest.approx(0.05 / 2 ** (1 / 1.5), rel=0.1)


def test_the_share_of_simulated_counts_is_the_probability() -> None:
    rng = np.random.default_rng(3)
    growth = rng.gamma(2.0, 0.7, 200_000)
    quantiles = np.quantile(growth, QUANTILES)
    now = 5000.0
    counts = np.floor((1 + now) * 2**growth - 1)
    for threshold in (5500.0, 8000.0, 20_000.0, 60_000.0, 150_000.0):
        found = exceedance(quantiles[None], growth_to(np.array([threshold]), now))[0]
        assert found == pytest.approx((counts >= threshold).mean(), abs=0.015)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 2.0), st.sampled_from([0.0, 3.0, 1e6]))
def test_probabilities_rise_with_the_horizon_and_fall_with_the_threshold(seed: int, scale: float, now: float) -> None:
    rng = np.random.default_rng(seed)
    on_grid = growing(seed, scale)
    thresholds = np.unique((1 + now) * 2.0 ** rng.uniform(-2, 8, 16) + rng.random(16))
    horizon_s = np.sort(rng.uniform(1, MAX_HORIZON_S, 40))
    found, times = passing(on_grid, now, thresholds, horizon_s, MAX_HORIZON_S)
    assert (np.diff(found, axis=1) >= 0).all() and (np.diff(found, axis=0) <= 0).all()
    passed = thresholds <= now
    assert (found[passed] == 1).all() and (times[passed] == 0).all()
    assert (found[~passed] >= LIMITS[0]).all() and (found[~passed] <= LIMITS[1]).all()
    # A horizon's probability does not depend on the other horizons that are asked.
    alone = [passing(on_grid, now, thresholds, horizon_s[[i]], MAX_HORIZON_S)[0][:, 0] for i in (0, 17, 39)]
    np.testing.assert_array_equal(np.stack(alone, axis=1), found[:, [0, 17, 39]])
    for t, confidence in zip(*np.nonzero(np.isfinite(times) & ~passed[:, None]), strict=True):
        at = np.array([times[t, confidence] * (1 + 1e-9), times[t, confidence] * 0.999])
        after, before = passing(on_grid, now, thresholds, np.minimum(at, MAX_HORIZON_S), MAX_HORIZON_S)[0][t]
        assert after >= CONFIDENCES[confidence] - 1e-6 and before <= CONFIDENCES[confidence] + 1e-6
    late, early = times[:, 1], times[:, 0]
    both = np.isfinite(late)
    assert (late[both] >= early[both]).all()
    unreached = ~np.isfinite(times)
    last = passing(on_grid, now, thresholds, np.array([MAX_HORIZON_S]), MAX_HORIZON_S)[0][:, 0]
    assert (last[:, None] < np.array(CONFIDENCES))[unreached].all()


def test_the_median_passes_a_threshold_when_the_probability_is_one_half() -> None:
    on_grid = growing(7)
    grid = grid_s(MAX_HORIZON_S)
    median = counts_at(1000.0, on_grid[:, MEDIAN])
    threshold = np.ceil(median[40])
    _, times = passing(on_grid, 1000.0, np.array([threshold]), np.array([3600.0]), MAX_HORIZON_S)
    assert grid[39] < times[0, 0] <= grid[41]


def test_growth_that_no_quantile_reaches_is_unlikely_and_has_no_time() -> None:
    on_grid = np.zeros((N_GRID + 1, len(QUANTILES)))
    found, times = passing(on_grid, 10.0, np.array([5.0, 10.0, 11.0, 1e308]), np.array([3600.0]), MAX_HORIZON_S)
    assert found[:, 0].tolist() == [1.0, 1.0, LIMITS[0], LIMITS[0]]
    assert np.isnan(times[2:]).all() and (times[:2] == 0).all()
