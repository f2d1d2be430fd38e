"""Shapes: equal curves of different levels have equal shapes, and later data do not change a shape."""

from __future__ import annotations

import numpy as np
import pytest

from model.engagement.bins import HOUR_US, bin_index
from model.engagement.cells import cells_of
from model.engagement.history import History, Series
from model.features.shape import N_STEPS, OTHER_WEIGHT, shape_bucket, shape_dim, shapes
from model.features.tokens import Tokens, tokenize
from model.growth.curve_kernels import NOMINAL_AGES_US

AGE_US = int(NOMINAL_AGES_US[13])
BUCKET = np.array([13])
RNG = np.random.default_rng(0)


def counters(ages_us: np.ndarray, views: np.ndarray, likes: np.ndarray | None = None) -> dict[str, Series]:
    bins = bin_index(ages_us)
    series = {"view": Series("counters", bins, views.astype(np.int64))}
    return series if likes is None else series | {"like": Series("counters", bins, likes.astype(np.int64))}


def tokens_of(series: dict[str, Series], age_us: int, n_types: int = 2) -> Tokens:
    cells = cells_of([History(series)], {"view": 0, "like": 1})
    return tokenize(cells, np.array([0]), np.array([age_us]), n_types)


def shape_of(series: dict[str, Series], age_us: int, metric: tuple[int, ...] = (0,)) -> np.ndarray:
    return shapes(tokens_of(series, age_us), np.array([0]), BUCKET, metric)[0]


HOURS = HOUR_US * np.arange(1, 40)
VIEWS = np.cumsum(RNG.integers(50, 500, len(HOURS)))


def test_the_level_does_not_change_the_shape() -> None:
    once, tenfold = (shape_of(counters(HOURS, VIEWS * factor), 40 * HOUR_US) for factor in (1, 10))
    np.testing.assert_allclose(once, tenfold, atol=1e-6)
    assert np.linalg.norm(once) == pytest.approx(1)
    other = shape_of(counters(HOURS, np.cumsum(RNG.integers(50, 500, len(HOURS)))), 40 * HOUR_US)
    assert np.abs(other - once).max() > 0.02


def test_rows_after_the_nominal_age_do_not_change_the_shape() -> None:
    later = int(np.searchsorted(HOURS, AGE_US)) + 1
    before = shape_of(counters(HOURS[:later], VIEWS[:later]), int(HOURS[later - 1]))
    # The histogram keeps the bin of a reading, not its time, so steps move by up to 1.6 % of the age.
    np.testing.assert_allclose(before, shape_of(counters(HOURS, VIEWS), 40 * HOUR_US), atol=0.02)


def test_steps_hold_the_square_roots_of_their_fractions() -> None:
    edges = AGE_US * np.arange(1, N_STEPS + 1) // N_STEPS
    count = np.cumsum(np.concatenate([[1000], np.arange(1, N_STEPS) * 100]))
    found = shape_of(counters(edges, count), AGE_US)
    expected = np.arange(N_STEPS) * 100.0
    # The bins of the histogram shift a reading by up to 1.6 % of its age.
    np.testing.assert_allclose(found[:N_STEPS] ** 2, expected / expected.sum(), atol=0.02)
    assert found[0] < 0.1, "counts before the first reading have no known time"


def test_other_types_have_less_weight() -> None:
    found = shape_of(counters(HOURS, VIEWS, VIEWS // 10), 40 * HOUR_US)
    assert len(found) == shape_dim(2, (0,)) == 2 * N_STEPS
    assert np.linalg.norm(found[N_STEPS:]) == pytest.approx(OTHER_WEIGHT)
    np.testing.assert_allclose(found[N_STEPS:], OTHER_WEIGHT * found[:N_STEPS], atol=0.01)
    assert len(shape_of(counters(HOURS, VIEWS, VIEWS), 40 * HOUR_US, (0, 1))) == 3 * N_STEPS


def test_two_readings_have_no_shape() -> None:
    assert not shape_of(counters(HOURS[:25:24], VIEWS[:25:24]), 30 * HOUR_US).any()
    assert shape_of(counters(HOURS[:23:11], VIEWS[:23:11]), 30 * HOUR_US).any()


def test_the_nominal_age_is_covered_by_data() -> None:
    tokens = tokens_of(counters(HOURS[:10], VIEWS[:10]), 39 * HOUR_US)
    assert NOMINAL_AGES_US[shape_bucket(tokens.known_until_s)[0]] <= 10.2 * HOUR_US
    events = {"view": Series("events", bin_index(np.array([HOUR_US])), np.array([3]))}
    assert NOMINAL_AGES_US[shape_bucket(tokens_of(events, 39 * HOUR_US).known_until_s)[0]] > 27 * HOUR_US
    assert shape_bucket(np.array([60.0])).tolist() == [-1]
