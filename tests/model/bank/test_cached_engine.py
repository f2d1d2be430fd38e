"""Videos and creators are read from the engine once, until something changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import pytest

from model.bank.cached_engine import CachedEngine
from model.bank.search import Lookup
from model.bank.stored_video import StoredVideo
from tests.model.bank.bank_cases import DC, DT, LATE, T0, curve, ids, query, vec

T = TypeVar("T")


class FakeEngine(CachedEngine[str]):
    """Two videos of one creator; counts what is read."""

    def __init__(self) -> None:
        super().__init__((DC, DT), ttl_s=None)
        self.calls: list[str] = []
        self.read: list[str] = []

    def _call(self, what: str, function: Callable[[], T]) -> T:
        self.calls.append(what)
        return function()

    def _key(self, video_id: str) -> str:
        return video_id

    def _nearest_in_engine(self, lookups: Sequence[Lookup]) -> list[list[tuple[str, float]]]:
        return [[("a", 0.9), ("b", 0.8)] for _ in lookups]

    def _all_usable(self, lookup: Lookup) -> bool:
        return lookup.now_us >= LATE

    def _read(self, keys: Sequence[str]) -> dict[str, StoredVideo]:
        self.read += keys
        return {key: StoredVideo(key, T0, T0, None, "ann", curve(), vec(DC, 1)) for key in keys}

    def _of_creators(self, creator_ids: Sequence[str]) -> Iterable[StoredVideo]:
        return self._rows([("b", 0), ("a", 0)]).values() if "ann" in creator_ids else []


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_a_video_is_read_once_until_it_changes(engine: FakeEngine) -> None:
    for _ in range(2):
        assert ids(engine.search([query(trajectory=None)])[0]) == ["a", "b"]
    assert engine.read == ["a", "b"]
    engine._invalidate(["b"])
    engine.search([query(trajectory=None)])
    assert engine.read == ["a", "b", "b"]


def test_a_creator_is_read_once_until_any_video_changes(engine: FakeEngine) -> None:
    for _ in range(2):
        found = engine.creator(["ann", "bob"])
        assert [past.video_id for past in found["ann"]] == ["a", "b"] and found["bob"] == []
    assert engine.calls == ["creator"], "known creators need no call"
    engine._invalidate([])
    engine.creator(["ann"])
    assert engine.calls == ["creator", "creator"]


def test_a_cached_search_is_dropped_when_a_video_changes(engine: FakeEngine) -> None:
    engine.cache_searches(10)
    for _ in range(2):
        engine.search([query(trajectory=None)])
    assert engine._searches is not None and engine._searches.misses == 1
    engine._invalidate(["a"])
    engine.search([query(trajectory=None)])
    assert engine._searches.misses == 2
