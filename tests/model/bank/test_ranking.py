"""Candidates are ranked by similarity, and of equally similar ones the more recent video comes first."""

from __future__ import annotations

import numpy as np

from model.bank.interface import BankQuery, Candidate, Curve
from model.bank.neighbours import AGING, aged, rank
from model.engagement.bins import HOUR_US

DAY_US = 24 * HOUR_US
NOW_US = 400 * DAY_US
CURVE = Curve(np.array([1], np.int64), np.array([1], np.int64))


def candidate(name: str, cosine: float, days: float) -> Candidate:
    vector = np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)
    return Candidate(name, NOW_US - round(days * DAY_US), None, None, CURVE, None, vector)


def ranked(*candidates: Candidate, k: int = 10) -> list[str]:
    query = BankQuery(None, np.array([1, 0], np.float32), 3, NOW_US, "target", 30)
    return [found.candidate.video_id for found in rank(query, candidates, 0.5, k, NOW_US)]


def test_of_equally_similar_videos_the_recent_one_comes_first() -> None:
    assert ranked(candidate("old", 0.9, 300), candidate("new", 0.9, 2), candidate("far", 0.2, 1)) == [
        "new",
        "old",
        "far",
    ]


def test_a_much_more_similar_video_comes_first_although_it_is_old() -> None:
    assert ranked(candidate("new", 0.3, 1), candidate("old", 0.95, 300)) == ["old", "new"]


def test_ties_are_ordered_by_id_and_only_the_best_are_kept() -> None:
    assert ranked(candidate("b", 0.5, 1), candidate("a", 0.5, 1), candidate("c", 0.4, 1), k=2) == ["a", "b"]


def test_a_later_video_does_not_gain() -> None:
    similarity = aged(np.array([0.5, 0.5, 0.5]), np.array([-5 * DAY_US, 0, 9 * DAY_US]))
    np.testing.assert_allclose(similarity, [0.5, 0.5, 0.5 - AGING * np.log(10)])
