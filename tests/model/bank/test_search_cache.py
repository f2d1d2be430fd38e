"""A bank that caches searches gives the same answers as one that does not, with fewer calls of its engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bank import BankQuery, EmbeddedBank
from tests.model.bank.bank_cases import DC, DT, LATE, T0, facts, ids, random_videos, vec, video


@pytest.fixture
def banks(tmp_path: Path) -> tuple[EmbeddedBank, EmbeddedBank]:
    """Two banks of the same 600 videos; the second one caches searches."""
    videos = random_videos(np.random.default_rng(3), 600)
    made = []
    for name in ("plain", "caching"):
        with EmbeddedBank.build(tmp_path / name, DC, DT) as bank:
            bank.upsert(videos)
        made.append(EmbeddedBank.open(tmp_path / name, DC, DT))
    made[1].cache_searches(100)
    return made[0], made[1]


def moved(rng: np.random.Generator, query: BankQuery, by: float) -> BankQuery:
    assert query.trajectory is not None
    step = rng.normal(size=DT).astype(np.float32) * by
    return replace(query, trajectory=query.trajectory + step, now_us=query.now_us + 1)


def test_moving_queries_get_the_same_answers(banks: tuple[EmbeddedBank, EmbeddedBank]) -> None:
    plain, caching = banks
    rng = np.random.default_rng(4)
    queries = [
        BankQuery(
            rng.normal(size=DC).astype(np.float32), rng.normal(size=DT).astype(np.float32), i % 4, LATE, f"v{i:04d}", 10
        )
        for i in range(40)
    ]
    misses = []
    for by in (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e-3):
        queries = [moved(rng, query, by) for query in queries]
        for a, b in zip(plain.search(queries), caching.search(queries), strict=True):
            assert facts(a) == facts(b)
        assert caching._searches is not None
        misses.append(caching._searches.misses)
    assert misses[0] == 80 and misses[1] - misses[0] < 10, "after a small step the cache answers"
    assert misses[5] - misses[4] == 40, "after a large step only the trajectories are searched again"


def test_a_new_video_is_found_at_once(banks: tuple[EmbeddedBank, EmbeddedBank]) -> None:
    _, bank = banks
    query = BankQuery(vec(DC, 1), vec(DT, 1), 2, LATE, "asks", 5)
    bank.search([query])
    bank.upsert([video("new", content=vec(DC, 1), trajectories={2: (vec(DT, 1), T0)}, usable_from_us=T0)])
    assert ids(bank.search([query])[0])[0] == "new"


def test_a_video_is_found_as_soon_as_it_is_usable(banks: tuple[EmbeddedBank, EmbeddedBank]) -> None:
    _, bank = banks
    bank.upsert([video("later", content=vec(DC, 1), trajectories={}, usable_from_us=LATE + 10)])
    query = BankQuery(vec(DC, 1), None, 2, LATE, "asks", 5)
    assert "later" not in ids(bank.search([query])[0])
    assert ids(bank.search([replace(query, now_us=LATE + 10)])[0])[0] == "later"
