"""The base forecast reads the same from a curve and from a summary, and learns growth that is linear in its features."""

from __future__ import annotations

import numpy as np

from index_builder.neighbours.base_fit import fit_base
from model.engagement.bins import HOUR_US, SECOND_US, bin_index
from model.engagement.cells import cells_of
from model.engagement.history import History, Series
from model.features.summary import share_columns, summaries
from model.features.tokens import tokenize
from model.growth.base_growth import LOG_AGES, N_BASE, base_growth, base_of_features
from model.growth.curve_kernels import (
    CURVE_EDGES_US,
    N_CURVE,
    N_GROWTH,
    NOMINAL_AGES_US,
    curve_growth,
    growth_horizons_us,
)
from model.growth.curves import Curves

HORIZONS_US = growth_horizons_us(48 * HOUR_US)
RNG = np.random.default_rng(0)


def power_curves(n: int) -> Curves:
    """Curves c a^p: the growth over any horizon follows from the level's change so far."""
    ages = np.tile(CURVE_EDGES_US[1:], (n, 1))
    power, scale = RNG.uniform(0.2, 1.0, (n, 1)), RNG.uniform(10, 100, (n, 1))
    return Curves(ages, np.round(1e4 * scale * (ages / ages[:, -1:]) ** power).astype(np.int64), np.full(n, N_CURVE))


def forecast(curves: Curves, video: int, age_us: int, weights: np.ndarray) -> np.ndarray:
    out = np.empty(N_GROWTH)
    base_growth(curves.ages_us[video], curves.values[video], N_CURVE, age_us, weights, LOG_AGES, np.empty(N_BASE), out)
    return out


def grown(curves: Curves, video: int, age_us: int) -> np.ndarray:
    out = np.empty(N_GROWTH + 1)
    curve_growth(curves.ages_us[video], curves.values[video], N_CURVE, age_us, HORIZONS_US, out)
    return out[:-1]


def test_growth_that_follows_from_the_curve_leaves_no_residual() -> None:
    weights = fit_base(power_curves(400), HORIZONS_US)
    new = power_curves(50)
    for age_us in (7 * HOUR_US, 20 * HOUR_US):
        residual = np.array([grown(new, v, age_us) - forecast(new, v, age_us, weights) for v in range(50)])
        growth = np.array([grown(new, v, age_us) for v in range(50)])
        assert np.square(residual).mean() < 0.01 * growth.var()


def test_the_base_does_not_fall_and_is_not_negative() -> None:
    weights = RNG.normal(size=(len(NOMINAL_AGES_US), N_GROWTH, N_BASE))
    base = forecast(power_curves(1), 0, 9 * HOUR_US, weights)
    assert base[0] >= 0 and (np.diff(base) >= 0).all()


def test_a_summary_and_a_curve_give_the_same_base() -> None:
    weights = fit_base(power_curves(200), HORIZONS_US)
    age_us = int(CURVE_EDGES_US[25])
    edges = CURVE_EDGES_US[1:26]
    # The views of each step of the curve. The summary spreads them evenly, so both read levels that differ little.
    views = np.diff(np.round(3e4 * (np.concatenate([[0], edges]) / age_us) ** 0.9)).astype(np.int64)
    bins = np.maximum(bin_index(edges) - 1, 0)
    history = History({"view": Series("events", bins, views)})
    tokens = tokenize(cells_of([history], {"view": 0}), np.zeros(1, np.int64), np.array([age_us]), 1)
    summary = summaries(tokens, np.array([age_us / SECOND_US]), (0,))
    values = np.concatenate([[0], np.cumsum(views)])
    from_curve = np.empty(N_GROWTH)
    ages_us = CURVE_EDGES_US[:26]
    base_growth(ages_us, values, 26, age_us, weights, LOG_AGES, np.empty(N_BASE), from_curve)
    from_summary = base_of_features(
        summary[:, 1].astype(np.float64),
        np.ascontiguousarray(summary[:, share_columns(1)[:3]], np.float64),
        np.array([age_us / SECOND_US]),
        weights,
    )[0]
    assert from_curve[-1] > 0.1
    np.testing.assert_allclose(from_summary, from_curve, rtol=0.1, atol=0.02)


def test_ages_without_data_use_the_nearest_age() -> None:
    few = power_curves(100)
    short = Curves(few.ages_us, few.values, np.full(100, 20))
    weights = fit_base(short, HORIZONS_US)
    assert weights.any((1, 2)).all()
