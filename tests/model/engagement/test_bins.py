"""Bins follow their formula; the last one is open, and its content counts as known only from its newest row on."""

from __future__ import annotations

import math

import numpy as np

from model.engagement.bins import EDGES_US, HOUR_US, N_BINS, NO_END_US, bin_end_us, bin_index
from model.engagement.history import History, Series
from model.engagement.rows import bin_times_us
from service.forecasts.engine import ended_by

YEAR_US = int(365.25 * 24 * HOUR_US)
LAST = N_BINS - 1


def test_all_bins_but_the_last_end_at_their_edges() -> None:
    assert (bin_end_us(np.arange(LAST)) == EDGES_US[1:-1]).all()
    assert int(bin_end_us(LAST)) == NO_END_US
    assert int(bin_index(100 * YEAR_US)) == LAST
    assert round(int(EDGES_US[-1]) / YEAR_US, 1) == 19.2


def test_a_value_in_the_last_bin_has_the_time_of_the_newest_row() -> None:
    published_us = 1_100_000_000_000_000
    newest_us = published_us + 21 * YEAR_US
    bins = np.array([LAST - 1, LAST])
    times = bin_times_us(bins, published_us, newest_us)
    assert times.tolist() == [published_us + int(EDGES_US[LAST]) - 1, newest_us]


def test_at_an_earlier_time_the_last_bin_is_not_known() -> None:
    bins = np.array([LAST - 1, LAST])
    history = History({"view": Series("counters", bins, np.array([1000, 5000]))}, {LAST: 7})
    seen = ended_by(history, 20 * YEAR_US)
    assert seen.series["view"].values.tolist() == [1000] and seen.reach == {}


def test_bins_follow_the_formula() -> None:
    rng = np.random.default_rng(0)
    ages_us = np.exp(rng.uniform(0, math.log(1.0e14), 20_000)).astype(np.int64)
    for age_us, index in zip(ages_us.tolist(), bin_index(ages_us).tolist(), strict=True):
        age = age_us / 1e6
        exact = age if age < 64 else 64 + math.log(age / 64) / math.log(1 + 1 / 64)
        if abs(exact - round(exact)) > 1e-6:  # exactly at an edge, floating point is not precise enough
            assert index == math.floor(exact)


def test_bins_contain_their_start_and_not_their_end() -> None:
    every = np.arange(N_BINS)
    assert (np.diff(EDGES_US) > 0).all()
    np.testing.assert_array_equal(bin_index(EDGES_US[:-1]), every)
    np.testing.assert_array_equal(bin_index(EDGES_US[1:] - 1), every)
    assert bin_index(int(EDGES_US[-1]) * 2) == N_BINS - 1
