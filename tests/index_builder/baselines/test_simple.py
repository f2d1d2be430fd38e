from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_builder.baselines.simple import Baseline, GrowthFactor, LogLinear, MeanGrowth, Persistence
from index_builder.samples.queries import Pairs

HOUR = 3600.0
ALL = [Persistence, MeanGrowth, GrowthFactor, LogLinear]


def some_pairs(n: int = 4000, seed: int = 0) -> Pairs:
    """Pairs whose growth is a known function of count, age and horizon, plus noise."""
    rng = np.random.default_rng(seed)
    age = 2.0 ** rng.uniform(10, 18, n)
    horizon = 2.0 ** rng.uniform(10, 18, n)
    value = np.floor(2.0 ** rng.uniform(0, 20, n))
    growth = np.log2(1 + horizon / age) * (1.2 - 0.03 * np.log2(1 + value)) + rng.normal(0, 0.05, n)
    return Pairs(age, horizon, value, growth)


def error(baseline: Baseline, pairs: Pairs) -> float:
    return float(np.mean((baseline.predict(pairs) - pairs.growth) ** 2))


@pytest.mark.parametrize("kind", ALL)
def test_every_baseline_fits_and_predicts_finite_growth(kind: type[Baseline]) -> None:
    pairs = some_pairs()
    baseline = kind().fit(pairs)
    assert baseline.name
    out = baseline.predict(pairs)
    assert out.shape == (len(pairs),) and out.dtype == np.float64
    assert np.isfinite(out).all()
    nothing = np.zeros(0)
    assert baseline.predict(Pairs(nothing, nothing, nothing, nothing)).shape == (0,)
    extreme = np.array([0.0, 1e12])
    assert np.isfinite(baseline.predict(Pairs(extreme, extreme[::-1], extreme, extreme * np.nan))).all()


@pytest.mark.parametrize("kind", ALL)
def test_unknown_growth_is_left_out_and_prediction_never_reads_it(kind: type[Baseline]) -> None:
    pairs, later = some_pairs(), some_pairs(500, seed=1)
    gaps = pairs.growth.copy()
    gaps[::3] = np.nan
    holed = kind().fit(Pairs(pairs.age_s, pairs.horizon_s, pairs.value_now, gaps))
    rows = np.isfinite(gaps)
    kept = kind().fit(Pairs(pairs.age_s[rows], pairs.horizon_s[rows], pairs.value_now[rows], gaps[rows]))
    blind = Pairs(later.age_s, later.horizon_s, later.value_now, np.full(len(later), np.nan))
    assert np.array_equal(holed.predict(later), kept.predict(blind))


@pytest.mark.parametrize("kind", [MeanGrowth, GrowthFactor, LogLinear])
def test_nothing_to_fit_on_is_an_error(kind: type[Baseline]) -> None:
    one = np.ones(3)
    with pytest.raises(ValueError, match="known growth"):
        kind().fit(Pairs(one, one, one, one * np.nan))


def test_better_baselines_have_smaller_errors() -> None:
    train, test = some_pairs(), some_pairs(seed=1)
    kinds: list[type[Any]] = ALL
    errors = [error(kind().fit(train), test) for kind in kinds]
    assert errors == sorted(errors, reverse=True)


def test_persistence_is_zero_and_mean_growth_is_the_mean() -> None:
    one = np.ones(4)
    train = Pairs(one, one, one, np.array([1.0, 2.0, 6.0, np.nan]))
    assert Persistence().fit(train).predict(train).tolist() == [0, 0, 0, 0]
    assert MeanGrowth().fit(train).predict(train).tolist() == [3, 3, 3, 3]


def test_growth_factor_is_the_mean_of_its_cell() -> None:
    age = np.array([1, 1, 1, 1, 24, 24]) * HOUR
    horizon = np.array([1, 1, 24, 24, 1, 1]) * HOUR
    growth = np.array([1.0, 2.0, 5.0, 7.0, 0.25, 0.75])
    pairs = Pairs(age, horizon, np.ones(6), growth)
    expected = [1.5, 1.5, 6, 6, 0.5, 0.5]
    np.testing.assert_allclose(GrowthFactor(min_pairs=2).fit(pairs).predict(pairs), expected)


def test_growth_factor_pools_thin_cells_with_their_neighbours() -> None:
    age = np.array([1.0] * 10 + [1.5] + [64.0] * 10) * HOUR
    growth = np.array([2.0] * 10 + [13.0] + [0.0] * 10)
    pairs = Pairs(age, np.full(21, HOUR), np.ones(21), growth)
    found = GrowthFactor(per_octave=1, min_pairs=5).fit(pairs).predict(pairs)
    assert found[10] == pytest.approx(33 / 11), "one pair alone is pooled with the ten beside it, not the far ten"
    assert found[-1] == 0
    assert GrowthFactor(min_pairs=10_000).fit(pairs).predict(pairs) == pytest.approx(np.full(21, growth.mean()))


def test_growth_factor_beyond_its_range_uses_the_nearest_cell() -> None:
    age = np.repeat([1.0, 64.0], 40) * HOUR
    train = Pairs(age, np.full(80, HOUR), np.ones(80), np.repeat([3.0, 1.0], 40))
    far = Pairs(np.array([0.0, 1e9]), np.array([1.0, 1e9]), np.ones(2), np.full(2, np.nan))
    assert GrowthFactor().fit(train).predict(far).tolist() == [3, 1]


def test_log_linear_recovers_its_own_coefficients() -> None:
    pairs = some_pairs(300)
    v, a, h = (np.log2(1 + x) for x in (pairs.value_now, pairs.age_s, pairs.horizon_s))
    growth = 0.5 - 0.1 * v - 0.4 * a + 0.6 * h + 0.01 * v * a - 0.02 * v * h + 0.003 * a * h
    exact = Pairs(pairs.age_s, pairs.horizon_s, pairs.value_now, growth)
    np.testing.assert_allclose(LogLinear().fit(exact).predict(exact), growth, atol=1e-9)


def test_log_linear_ignores_terms_that_do_not_vary() -> None:
    value = np.exp2(np.arange(10, dtype=np.float64))
    same = np.full(10, HOUR)
    pairs = Pairs(same, same, value, np.log2(1 + value) * -0.1 + 2)
    fitted = LogLinear().fit(pairs)
    np.testing.assert_allclose(fitted.predict(pairs), pairs.growth, atol=1e-9)
    elsewhere = Pairs(same * 50, same * 9, value, pairs.growth)
    np.testing.assert_allclose(fitted.predict(elsewhere), pairs.growth, atol=1e-9)


def test_arrays_of_pairs_must_have_the_same_length() -> None:
    with pytest.raises(ValueError, match="the same length"):
        Pairs(np.ones(2), np.ones(2), np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="at least 1"):
        GrowthFactor(min_pairs=0)
