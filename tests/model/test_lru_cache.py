"""The least recently used value leaves first, and values expire."""

from __future__ import annotations

import pytest

from model.lru_cache import LRUCache


def filled(capacity: int, *keys: str) -> LRUCache[str, int]:
    cache: LRUCache[str, int] = LRUCache(capacity)
    for number, key in enumerate(keys):
        cache.put(key, number)
    return cache


def test_the_least_recently_used_value_is_dropped() -> None:
    cache = filled(2, "a", "b")
    assert cache.get("a") == 0
    cache.put("c", 2)
    assert cache.keys() == ["a", "c"] and cache.get("b") is None


def test_putting_a_key_again_is_a_use_and_drops_nothing() -> None:
    cache = filled(2, "a", "b", "a")
    assert cache.keys() == ["b", "a"] and cache.values() == [1, 2]


def test_peeking_is_no_use() -> None:
    cache = filled(2, "a", "b")
    assert cache.peek("a") == 0
    cache.put("c", 2)
    assert "a" not in cache and len(cache) == 2


def test_evict_returns_the_least_recently_used_value() -> None:
    cache = filled(3, "a", "b")
    assert cache.evict() == 0 and cache.evict() == 1
    with pytest.raises(KeyError):
        cache.evict()


def test_a_dropped_value_is_returned_once() -> None:
    cache = filled(2, "a")
    assert cache.drop("a") == 0 and cache.drop("a") is None and cache.get("a") is None


def test_a_cache_without_capacity_stores_nothing() -> None:
    assert len(filled(0, "a", "b")) == 0


def test_a_value_expires_after_its_time_to_live(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("model.lru_cache.time.monotonic", lambda: now)
    cache: LRUCache[str, int] = LRUCache(2, ttl_s=5.0)
    cache.put("a", 1)
    now = 105.0
    assert cache.get("a") == 1, "being read does not extend its life"
    now = 105.1
    assert cache.peek("a") is None and "a" not in cache
