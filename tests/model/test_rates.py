"""Rates follow the slope of the forecast, and stay near the forecast of the next hour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.features.tokens import LOG_AGE_OFFSET_S
from model.rates import HOUR_S, KNOTS, N_WAVES, RateInputs, Rates, in_next_hour, knot_weights, slope_horizon_s, waves

DAY_S = 24 * HOUR_S


def rate_inputs(n: int = 500, seed: int = 0) -> RateInputs:
    rng = np.random.default_rng(seed)
    age_s = np.exp(rng.uniform(np.log(60), np.log(30 * DAY_S), n))
    views = np.floor(10 ** rng.uniform(0, 5, n))
    slope = views * rng.uniform(0, 0.2, n)
    wave = waves(rng.uniform(0, 1e9, n), age_s, HOUR_S, slope_horizon_s(age_s, 7 * DAY_S))
    counts = np.stack([views, np.floor(views * 0.1)], 1)
    return RateInputs(age_s, rng.random(n) < 0.1, slope, slope * rng.uniform(0, 3, n), wave, views, counts)


def rates(metric: tuple[int, ...] = (0,), bounds: tuple[float, float] = (0.0, np.inf)) -> Rates:
    rng = np.random.default_rng(1)
    factor, day = rng.normal(0, 0.5, (2, len(KNOTS), 2)), rng.normal(0, 0.3, (N_WAVES, 2))
    return Rates(factor, day, np.array([1.0, 0.1]), metric, bounds)


def test_the_slope_horizon_is_half_the_age_between_an_hour_and_a_day() -> None:
    age_s = np.array([0.0, HOUR_S, 10 * HOUR_S, 30 * DAY_S])
    assert slope_horizon_s(age_s, 7 * DAY_S).tolist() == [HOUR_S, HOUR_S, 5 * HOUR_S, DAY_S]
    assert (slope_horizon_s(age_s, 1800.0) == 1800.0).all()


def test_growth_even_in_log_age_is_split_by_log_age() -> None:
    age_s, horizon_s = np.array([1800.0, DAY_S]), np.array([HOUR_S, DAY_S])

    def count(at_s: np.ndarray) -> np.ndarray:
        return 100 * np.log(at_s + LOG_AGE_OFFSET_S)

    fitted = in_next_hour(count(age_s + horizon_s) - count(age_s), age_s, horizon_s)
    np.testing.assert_allclose(fitted, count(age_s + HOUR_S) - count(age_s))


def test_waves_are_means_over_the_hour_minus_means_over_the_horizon() -> None:
    age_s, now_s = np.array([40 * HOUR_S]), np.array([123_456_789.0])
    at = np.linspace(0, 1, 20_001)
    expected = []
    for since in (now_s[0], age_s[0]):
        for number in (1, 2):
            for wave in (np.cos, np.sin):
                near, far = (
                    wave(2 * np.pi * number * (since + at * length) / DAY_S).mean() for length in (HOUR_S, 20 * HOUR_S)
                )
                expected.append(near - far)
    np.testing.assert_allclose(waves(now_s, age_s, HOUR_S, np.array([20 * HOUR_S]))[0], expected, atol=1e-3)
    assert not waves(now_s, age_s, HOUR_S, np.array([HOUR_S])).any(), "with a horizon of one hour they do not differ"


def test_knot_weights_are_linear_in_log_age_and_sum_to_one() -> None:
    weights = knot_weights(np.concatenate([[0.0], np.exp(KNOTS) - LOG_AGE_OFFSET_S, [1e9]]))
    np.testing.assert_allclose(weights[1:-1], np.eye(len(KNOTS)), atol=1e-9)
    np.testing.assert_array_equal(weights[[0, -1]], np.eye(len(KNOTS))[[0, -1]])
    halfway = knot_weights(np.exp((KNOTS[1:] + KNOTS[:-1]) / 2) - LOG_AGE_OFFSET_S)
    np.testing.assert_allclose(np.sort(halfway, axis=1)[:, -2:], 0.5, atol=1e-9)
    np.testing.assert_allclose(knot_weights(rate_inputs().age_s).sum(1), 1)


def test_a_types_rate_follows_its_share_of_the_metric() -> None:
    inputs = rate_inputs()
    plain = Rates.plain(2, (0,)).expected(inputs)
    some = inputs.value_now > 10_000
    np.testing.assert_allclose(plain[some, 0], inputs.slope[some], rtol=1e-2)
    np.testing.assert_allclose(plain[some, 1], inputs.slope[some] * 0.1, rtol=2e-2)
    new = replace(inputs, value_now=np.zeros(500), counts=np.zeros((500, 2)))
    liked = replace(new, counts=np.tile([0.0, 20.0], (500, 1)))
    ratio = rates().unbounded(new)[:, 1] / rates().unbounded(liked)[:, 1]
    np.testing.assert_allclose(ratio, 0.1 / 1.1)


def test_cold_starts_have_their_own_factors_and_no_waves() -> None:
    inputs, fitted = rate_inputs(), rates()
    cold = replace(inputs, cold=np.ones(500, bool))
    expected = np.exp(knot_weights(inputs.age_s) @ fitted.log_factor[1]) * Rates.plain(2, (0,)).unbounded(inputs)[:, :1]
    np.testing.assert_allclose(fitted.unbounded(cold)[:, 0], expected[:, 0])


def test_the_metrics_rate_stays_within_bounds_of_the_next_hours_mean() -> None:
    inputs = rate_inputs()
    for metric in ((0,), (0, 1)):
        bounded, free = rates(metric, (0.5, 2.0)).expected(inputs), rates(metric).expected(inputs)
        total, some = bounded[:, list(metric)].sum(1), inputs.mean >= 0.5
        assert (total[some] >= inputs.mean[some] * 0.5 * (1 - 1e-9)).all()
        assert (total[some] <= inputs.mean[some] * 2 * (1 + 1e-9)).all()
        assert (total <= np.maximum(inputs.mean, 0.5) * 2 * (1 + 1e-9)).all()
        assert (total != free[:, list(metric)].sum(1)).any() and (total == free[:, list(metric)].sum(1)).any()
        np.testing.assert_allclose(bounded[:, 1] / bounded[:, 0], free[:, 1] / free[:, 0])


def test_a_rate_does_not_depend_on_its_batch() -> None:
    inputs, fitted = rate_inputs(), rates(bounds=(0.5, 2.0))
    whole = fitted.expected(inputs)
    for i in (0, 17, 499):
        one = fitted.expected(inputs.take(np.arange(500) == i))
        np.testing.assert_array_equal(one[0], whole[i])


def test_rates_are_restored_from_a_bundle() -> None:
    fitted = rates((0, 1), (0.3, 4.0))
    again = Rates.of(fitted.arrays())  # type: ignore[arg-type]
    assert again.metric == (0, 1) and again.bounds == (0.3, 4.0)
    for name in ("log_factor", "day", "share"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))
