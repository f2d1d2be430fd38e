"""Videos without an engagement are deleted after the retention's days, and no others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from service.store import keys
from service.store.store import Store
from service.times import now_us
from tests.service.forgetting.test_forgetting import keys_with, make_bank, open_bank
from tests.service.running import Live, live, wait_until
from tests.service.store.test_store import P0, REGISTRATION, S, event, with_store

pytestmark = pytest.mark.slow

DAY_S = 86_400
DAYS = 10


def ended(service: Live) -> float:
    return service.context.metrics.videos_ended._value.get()


def test_silent_videos_are_deleted_and_active_ones_stay(empty_redis: str, tmp_path: Path) -> None:
    """The service's clock is ahead by the retention's days; the store's registration times are real."""
    now = time.time()
    names = ("silent-xQ7", "empty-xQ7", "alive-xQ7")
    busy: dict[str, Any] = {"labels": 1000, "ranking_forecasts": 100}
    with live(empty_redis, **busy) as service:
        # Registered while no retention was set.
        for name in names:
            service.register(name, now - 100 * DAY_S, title=name)
            if name != names[1]:
                service.post("/events", [{"video_id": name, "time": now - 60, "type": "view", "id": f"{name}-1"}])
            assert service.http.get(f"/videos/{name}/forecast").status_code == 200
        wait_until(lambda: len(service.http.get("/videos?sort=views").json()["videos"]) == 3)
        wait_until(lambda: service.redis.keys(keys.label_key("made:*")))
    bank = open_bank(make_bank(tmp_path / "bank", *names))
    ahead_us = 0
    with live(
        empty_redis, bank=bank, retention_days=DAYS, clock=lambda: now_us() + ahead_us, future_skew_s=0, **busy
    ) as service:
        service.register("later", now)
        wait_until(lambda: service.redis.zcard(keys.RETENTION) == 4)
        wait_until(lambda: all(due > now for _, due in service.redis.zrange(keys.RETENTION, 0, -1, withscores=True)))
        assert ended(service) == 0
        ahead_us = int((DAYS + 1) * DAY_S * 1e6)
        service.post("/events", [{"video_id": names[2], "time": now + DAYS * DAY_S, "type": "view"}])
        wait_until(lambda: ended(service) == 3)
        assert [service.http.get(f"/videos/{name}").status_code for name in names] == [404, 404, 200]
        assert service.redis.zrange(keys.RETENTION, 0, -1) == [names[2].encode()]
        wait_until(
            lambda: [v["video_id"] for v in service.http.get("/videos?sort=views").json()["videos"]] == [names[2]]
        )
        for name in names[:2]:
            assert [key for key in keys_with(service.redis, name) if key != keys.CHANGES.encode()] == []
        # Its entries in the bank stay, and there is no tombstone.
        assert bank.counts()["videos"] == 3 and not service.redis.exists(keys.FORGOTTEN)
        # It can be registered again.
        service.register(names[0], now)
        assert service.http.get(f"/videos/{names[0]}").json()["counts"] == {}
    bank.close()


def test_row_that_arrives_meanwhile_keeps_its_video(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(10)]})
        snapshot = await store.read("v")
        assert snapshot is not None
        newest = max(P0 + 10 * S, snapshot.registered_us)
        assert not await store.forget("v", idle_since_us=newest)
        assert await store.read("v") is not None
        assert await store.forget("v", idle_since_us=newest + 1)
        assert await store.read("v") is None
        assert not await store.forget("v", idle_since_us=newest + 1)

    with_store(empty_redis, work)


def test_without_retention_no_schedule_is_kept(empty_redis: str) -> None:
    with live(empty_redis) as service:
        service.register("v")
        assert service.redis.keys("m3tr:{retention}*") == []
