"""Rates of types follow from the forecast of the metric, and their sums come true."""

from __future__ import annotations

import numpy as np

from model.quantiles.calibration import N_ROWS, row_of
from model.rates import Rates

AGES_S = np.array([1800.0, 4 * 3600.0, 86_400.0])


def moments(n: int, seed: int) -> tuple[np.ndarray, ...]:
    """Videos whose growth is skewed: the mean is a multiple of the median, by age; likes are a tenth of views, by video."""
    rng = np.random.default_rng(seed)
    row = rng.integers(0, 3, n)
    views = np.floor(10 ** rng.uniform(1, 4, n))
    ratio = 0.1 * np.exp(rng.normal(0, 0.5, n))
    increment = views * 0.05
    grown = increment * np.array([1.0, 1.5, 2.5])[row] * rng.exponential(1.0, n)
    counts = np.stack([views, views * ratio], 1)
    return np.arange(n), AGES_S[row], np.zeros(n, bool), increment, views, counts, np.stack([grown, grown * ratio], 1)


def test_sums_of_later_videos_come_true_by_type_and_age() -> None:
    rates = Rates.fit(*moments(20_000, 0), metric=(0,))
    _, age_s, cold, increment, views, counts, grown = moments(20_000, 1)
    expected = rates.expected(age_s, cold, increment, views, counts)
    for age in AGES_S:
        rows = age_s == age
        assert np.allclose(expected[rows].sum(0) / grown[rows].sum(0), 1, atol=0.1)


def test_the_metric_goes_as_its_median_times_one_factor_an_age() -> None:
    rates = Rates.fit(*moments(5000, 0), metric=(0,))
    _, age_s, cold, increment, views, counts, _ = moments(100, 2)
    expected = rates.expected(age_s, cold, increment, views, counts)
    assert np.allclose(expected[:, 0] / increment, rates.factor[row_of(age_s, cold), 0])


def test_shares_of_a_total_add_up() -> None:
    video, age_s, cold, increment, _, counts, grown = moments(5000, 0)
    rates = Rates.fit(video, age_s, cold, increment, counts.sum(1), counts, grown, metric=(0, 1))
    assert np.isclose(rates.share.sum(), 1)


def test_what_nobody_observed_leaves_finite_rates() -> None:
    video, age_s, cold, increment, views, counts, grown = moments(50, 0)
    grown[:, 1] = np.nan
    rates = Rates.fit(video, age_s, cold, increment, views, counts, grown, metric=(0,))
    assert rates.factor.shape == (N_ROWS, 2)
    assert np.isfinite(rates.expected(age_s, cold, increment, views, counts)).all()


def test_they_survive_a_bundle() -> None:
    rates = Rates.fit(*moments(100, 0), metric=(0,))
    again = Rates.of(rates.arrays())  # type: ignore[arg-type]
    assert np.array_equal(again.factor, rates.factor)
    assert np.array_equal(again.share, rates.share)
