"""Intervals regain their coverage after the data have changed, even if outcomes arrive late."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from model.quantiles.adaptive import LIMIT, RAMP, STEPS, VOTERS, Adaptive, median_logs, reaches
from model.quantiles.calibration import COLD, N_COLUMNS, N_ROWS, Calibration, calibration_column, calibration_row
from model.quantiles.head import N_BASIS, N_PARTS, N_STEPS, QUANTILES, grid_growth, grid_parts, moved

Z = np.array([1.6449, 1.2816, 0.6745, 0.6745, 1.2816, 1.6449])
"""Distances of a standard normal's quantiles from its median."""
ENDS = [1, 4]
"""The 0.1 and 0.9 quantiles among those that are stretched."""


def world(n: int, seed: int, spread: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Outcomes around a median of 0 in cells of very unequal traffic. The unstretched intervals are right for a spread of 1."""
    rng = np.random.default_rng(seed)
    cell = rng.zipf(1.3, n) % (N_ROWS * N_COLUMNS)
    return cell // N_COLUMNS, cell % N_COLUMNS, rng.normal(size=n) * spread


def reach(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([-y, -y, -y, y, y, y], axis=1) / Z


def upwards(n: int) -> NDArray[np.float64]:
    """Outcomes far above every quantile."""
    return np.where(np.arange(N_STEPS) < 3, 0.0, 9.0) * np.ones((n, 1))


def inside(y: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether outcomes lie inside the 80 % interval."""
    return np.asarray((reach(y) <= factors)[:, ENDS].all(axis=1))


def tracked(state: Adaptive, n: int, seed: int, spread: float, late: int) -> tuple[Adaptive, NDArray[np.bool_]]:
    """Forecast n outcomes, each of which is learned ``late`` forecasts later; return the state, and which outcomes were covered."""
    rows, columns, y = world(n, seed, spread)
    covered = np.zeros(n, np.bool_)
    for start in range(0, n, 50):
        now = slice(start, start + 50)
        covered[now] = inside(y[now], state.factors()[rows[now], columns[now]])
        if (known := slice(start - late, start - late + 50)).start >= 0:
            state = state.learned(rows[known], columns[known], reach(y[known]))
    return state, covered


def test_without_outcomes_nothing_changes() -> None:
    assert (Adaptive.new().factors() == 1.0).all()
    none = np.zeros(0, np.int64)
    assert (Adaptive.new().learned(none, none, np.zeros((0, N_STEPS))).factors() == 1.0).all()


@pytest.mark.parametrize("late", [0, 1000])
@pytest.mark.parametrize("spread", [2.0, 0.5])
def test_coverage_returns_after_a_shift(spread: float, late: int) -> None:
    state, before = tracked(Adaptive.new(), 6000, 1, 1.0, late)
    assert before.mean() == pytest.approx(0.80, abs=0.03)
    _, after = tracked(state, 9000, 2, spread, late)
    assert abs(after[:500].mean() - 0.80) > 0.08, "the test means something only if the shift hurts the coverage"
    for start in range(4000, 9000, 2500):
        assert after[start : start + 2500].mean() == pytest.approx(0.80, abs=0.03)


def test_every_cell_has_its_own_coverage() -> None:
    """Half of the horizons become twice as uncertain, the other half only half as uncertain."""
    rng = np.random.default_rng(3)
    n = 60_000
    rows, columns = rng.integers(0, N_ROWS, n), rng.integers(0, N_COLUMNS, n)
    y = rng.normal(size=n) * np.where(columns % 2, 2.0, 0.5)
    state, covered = Adaptive.new(), np.zeros(n, np.bool_)
    for start in range(0, n, 100):
        now = slice(start, start + 100)
        covered[now] = inside(y[now], state.factors()[rows[now], columns[now]])
        state = state.learned(rows[now], columns[now], reach(y[now]))
    late = np.arange(n) >= n // 2
    for column in range(N_COLUMNS):
        assert covered[late & (columns == column)].mean() == pytest.approx(0.80, abs=0.03)


def test_a_cell_without_outcomes_uses_the_common_terms() -> None:
    rows, columns, y = world(5000, 4, 3.0)
    rows, columns = np.where((rows == 2) & (columns == 5), 3, rows), columns
    factors = Adaptive.new().learned(rows, columns, reach(y)).factors()
    assert (factors[2, 5] > 1.2).all()


def test_misses_on_one_side_widen_only_that_side() -> None:
    n = 500
    factors = Adaptive.new().learned(np.full(n, 1), np.full(n, 1), upwards(n)).factors()
    assert factors[1, 1, :3].max() < 1 < factors[1, 1, 3:].min()


def test_every_quantile_regains_its_own_level() -> None:
    """Outcomes turn from a normal into a skew distribution with heavy tails."""
    rng = np.random.default_rng(8)
    n = 40_000
    rows = columns = np.ones(n, np.int64)
    y = np.where(rng.random(n) < 0.5, rng.exponential(1.0, n), -0.4 * rng.random(n))
    state, below = Adaptive.new(), np.zeros((n, N_STEPS))
    for start in range(0, n, 100):
        now = slice(start, start + 100)
        beyond = reach(y[now]) > state.factors()[rows[now], columns[now]]
        below[now] = np.where(np.arange(N_STEPS) < 3, beyond, ~beyond)
        state = state.learned(rows[now], columns[now], reach(y[now]))
    levels = [level for level in QUANTILES if level != 0.5]
    np.testing.assert_allclose(below[n // 2 :].mean(0), levels, atol=0.01)


def test_the_stretch_is_bounded_and_leaves_its_bound_at_once() -> None:
    n = 3000
    cell = np.zeros(n, np.int64)
    wide = Adaptive.new().learned(cell, cell, np.full((n, N_STEPS), np.inf))
    assert wide.factors().max() == pytest.approx(np.exp(LIMIT), rel=0.03) and np.isfinite(wide.factors()).all()
    assert (
        wide.learned(cell[:300], cell[:300], np.zeros((300, N_STEPS))).factors()[0, 0, 2:4] < 0.7 * np.exp(LIMIT)
    ).all()


def test_a_state_is_restored_from_json() -> None:
    rows, columns, y = world(300, 5, 1.5)
    state = Adaptive.new().learned(rows, columns, reach(y))
    again = Adaptive.from_json(json.loads(json.dumps(state.to_json())))
    np.testing.assert_array_equal(again.factors(), state.factors())
    assert again.outcomes == 300


def test_reaches_do_not_depend_on_the_stretch() -> None:
    growth = np.array([0.2, 3.0, 1.0, 2.0])
    distance = np.array([[0.8, 0.5, 0.25, 0.5, 1.0, 2.0]] * 3 + [[0.0] * 6])
    stretch = np.array([[0.5, 0.6, 0.7, 1.5, 2.0, 3.0]] * 4)
    expected = [
        [1.0, 1.6, 3.2, -1.6, -0.8, -0.4],
        [-2.5, -4.0, -8.0, 4.0, 2.0, 1.0],
        [0.0] * 6,
        [0.0] * 3 + [np.inf] * 3,
    ]
    for factors in (np.ones((4, N_STEPS)), stretch):
        far = distance * factors
        quantiles = 1 + np.concatenate([-far[:, :3], np.zeros((4, 1)), far[:, 3:]], axis=1)
        np.testing.assert_allclose(reaches(growth, quantiles, factors), expected)


def test_stretched_quantiles_never_fall_and_never_cross() -> None:
    rng = np.random.default_rng(6)
    rows, columns = rng.integers(0, N_ROWS, 4000), rng.integers(0, N_COLUMNS, 4000)
    state = Adaptive.new().learned(rows, columns, rng.exponential(3.0, (4000, N_STEPS)))
    plain = Calibration(rng.uniform(0.3, 3.0, (N_ROWS, N_COLUMNS, N_STEPS)), rng.uniform(-1, 1, (N_ROWS, N_COLUMNS)))
    calibration = plain.times(state.factors())
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    np.testing.assert_array_equal(again.shift, plain.shift)
    np.testing.assert_array_equal(again.stretch, plain.stretch * state.factors())
    age_s = rng.uniform(0, 30 * 86400, 13)
    cold = age_s < 86400
    max_horizon_s = 168 * 3600.0
    coefficients = rng.exponential(0.3, (len(age_s), N_PARTS, N_BASIS)).astype(np.float32)
    centre, steps = grid_parts(coefficients, age_s, max_horizon_s)
    centre = moved(centre, steps, calibration.shift_on_grid(age_s, cold, max_horizon_s))
    growth = grid_growth(centre, steps, calibration.on_grid(age_s, cold, max_horizon_s))
    assert (growth >= 0).all() and (np.diff(growth, axis=1) >= 0).all()
    assert (np.diff(growth[..., 1:], axis=2) >= 0).all()
    assert (growth[:, 0] == 0).all()


def test_cells_are_those_of_the_calibration() -> None:
    assert calibration_row(np.array([0.0, 3600.0, 1e9]), np.array([True, False, False])).tolist() == [
        COLD,
        1,
        N_ROWS - 2,
    ]
    assert calibration_column(np.array([60.0, 1e9])).tolist() == [0, N_COLUMNS - 1]


def all_missed_above(n: int) -> Adaptive:
    cell = np.ones(n, np.int64)
    return Adaptive.new().learned(cell, cell, upwards(n))


def test_the_first_outcomes_move_the_stretch_less() -> None:
    first = all_missed_above(1).logs()[1, 1, 4]
    assert first == pytest.approx(0.9 * sum(STEPS) / RAMP)
    assert all_missed_above(10).logs()[1, 1, 4] < 0.2 * 10 * 0.9 * sum(STEPS)
    more = all_missed_above(RAMP + 1).logs()[1, 1, 4] - all_missed_above(RAMP).logs()[1, 1, 4]
    assert more == pytest.approx(0.9 * sum(STEPS))


def test_a_state_of_an_earlier_release_is_read() -> None:
    state = all_missed_above(60)
    data = state.to_json()
    del data["seen"]
    again = Adaptive.from_json(data)
    np.testing.assert_array_equal(again.factors(), state.factors())
    assert again.outcomes == 60 and again.seen.sum() == 0
    # A still earlier release stretched the lower and the upper half of the 80 % interval.
    halves = {name: state.to_json()[name] for name in ("outcomes", "seen")} | {
        name: getattr(state, name)[..., ENDS].tolist() for name in ("overall", "by_horizon", "by_cell")
    }
    again = Adaptive.from_json(halves)
    np.testing.assert_array_equal(again.factors(), state.factors()[..., [1, 1, 1, 4, 4, 4]])


def test_a_dishonest_client_does_not_move_the_median_past_honest_ones() -> None:
    honest = [all_missed_above(RAMP + i) for i in range(VOTERS)]
    assert (median_logs(honest[1:]) == 0).all(), "too few"
    assert (median_logs([*honest[1:], all_missed_above(RAMP - 1)]) == 0).all(), (
        "one of them has too few outcomes to count"
    )
    logs = [float(state.logs()[1, 1, 4]) for state in honest]
    for liar in (all_missed_above(5000), Adaptive(-9 * np.ones(N_STEPS), *_nothing(), 5000)):
        between = float(median_logs([*honest, liar])[1, 1, 4])
        assert min(logs) <= between <= max(logs)


def _nothing() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.zeros((N_COLUMNS, N_STEPS)), np.zeros((N_ROWS, N_COLUMNS, N_STEPS))


def test_the_starting_stretch_fades_as_outcomes_arrive() -> None:
    base = np.full((N_ROWS, N_COLUMNS, N_STEPS), 0.4)
    np.testing.assert_allclose(Adaptive.new().over(base), np.exp(0.4))
    state = all_missed_above(3 * RAMP)
    np.testing.assert_allclose(state.over(base), np.exp(np.clip(state.logs() + 0.1, -LIMIT, LIMIT)))
