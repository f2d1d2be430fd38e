"""The summary of a history equals what its counts say."""

from __future__ import annotations

import numpy as np
import pytest

from model.engagement.bins import SECOND_US, bin_index
from model.engagement.cells import cells_of
from model.engagement.history import History, Series
from model.features.summary import n_summary, summaries
from model.features.tokens import tokenize

HOUR_S = 3600.0
TYPES = {"view": 0, "like": 1}


def _summary(history: History, age_s: float) -> np.ndarray:
    now = np.array([round(age_s * SECOND_US)])
    tokens = tokenize(cells_of([history], TYPES), np.zeros(1, np.int64), now, len(TYPES))
    return summaries(tokens, np.array([age_s]), (0,))[0]


def _counters(ages_h: list[float], views: list[int], likes: list[int]) -> History:
    bins = bin_index(np.array([round(a * HOUR_S * SECOND_US) for a in ages_h]))
    return History(
        {
            "view": Series("counters", bins, np.array(views, np.int64)),
            "like": Series("counters", bins, np.array(likes, np.int64)),
        }
    )


def test_an_empty_history_gives_only_the_age() -> None:
    row = _summary(History({}), 2 * HOUR_S)
    assert row[0] == pytest.approx(np.log2(2 * HOUR_S + 60))
    assert not row[1:].any()
    assert len(row) == n_summary(2)


def test_steps_measure_the_growth_between_the_newest_snapshots() -> None:
    row = _summary(_counters([10, 20, 40], [999, 1999, 3999], [99, 99, 199]), 41 * HOUR_S)
    assert row[1] == pytest.approx(np.log2(4000))
    assert row[2] == pytest.approx(np.log2(4))
    assert row[4] == pytest.approx(np.log2(1000))
    assert row[7] == pytest.approx(np.log2(200 / 4000))
    newest = row[8:15]
    assert newest[0] == 1
    assert newest[1] == pytest.approx(1.0)
    # Tokens end at the ends of bins, which lie up to 1.6 % of the age after the snapshots.
    assert newest[2] == pytest.approx(1.0, abs=0.05)
    assert newest[3] == pytest.approx(1.0, abs=0.06)
    assert newest[4] == pytest.approx(np.log2(1 + 2000 / 20) - np.log2(4000), abs=0.05)
    assert newest[5:] == pytest.approx([1.0, 1.0])
    before = row[15:22]
    assert before[0] == 1
    assert before[1] == pytest.approx(1.0)
    assert before[6] == pytest.approx(0.0)
    assert not row[22:29].any(), "there is no snapshot before the first one"


def test_shares_and_spans_are_counted_back_from_now() -> None:
    ages_s = np.sort(np.random.default_rng(3).uniform(0, 16 * HOUR_S, 5000))
    bins, counts = np.unique(bin_index((ages_s * SECOND_US).astype(np.int64)), return_counts=True)
    history = History({"view": Series("events", bins.astype(np.int64), counts.astype(np.int64))})
    row = _summary(history, 16 * HOUR_S)
    at = 6 + 2 + 3 * 7
    for j, share in enumerate((1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)):
        before = (ages_s <= 16 * HOUR_S * (1 - share)).sum()
        assert row[at + j] == pytest.approx(np.log2(5001 / (1 + before)), abs=0.02)
    for j, span in enumerate((0.5, 1, 2, 3, 4, 6, 8, 12, 18, 24)):
        within = (ages_s > (16 - span) * HOUR_S).sum()
        assert row[at + 5 + j] == pytest.approx(np.log2((1 + within) / 5001), abs=0.15)
