"""The last bin is open, and nothing in it counts as known before it was."""

from __future__ import annotations

import numpy as np

from model.engagement.bins import EDGES_US, HOUR_US, N_BINS, NO_END_US, bin_end_us, bin_index
from model.engagement.history import History, Series
from model.engagement.rows import bin_times_us
from service.forecasts.engine import ended_by

YEAR_US = int(365.25 * 24 * HOUR_US)
LAST = N_BINS - 1


def test_bins_end_at_their_edges_but_the_last() -> None:
    assert (bin_end_us(np.arange(LAST)) == EDGES_US[1:-1]).all()
    assert int(bin_end_us(LAST)) == NO_END_US
    assert int(bin_index(100 * YEAR_US)) == LAST
    assert round(int(EDGES_US[-1]) / YEAR_US, 1) == 19.2


def test_a_value_of_the_last_bin_is_dated_at_the_newest_row() -> None:
    published_us = 1_100_000_000_000_000
    newest_us = published_us + 21 * YEAR_US
    bins = np.array([LAST - 1, LAST])
    times = bin_times_us(bins, published_us, newest_us)
    assert times.tolist() == [published_us + int(EDGES_US[LAST]) - 1, newest_us]


def test_an_earlier_look_does_not_see_the_last_bin() -> None:
    bins = np.array([LAST - 1, LAST])
    history = History({"view": Series("counters", bins, np.array([1000, 5000]))}, {LAST: 7})
    seen = ended_by(history, 20 * YEAR_US)
    assert seen.series["view"].values.tolist() == [1000] and seen.reach == {}
