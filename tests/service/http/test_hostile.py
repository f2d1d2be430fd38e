"""Input of hostile or unlucky clients; each of these was a bug once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from service.store.change_subscriber import ChangeSubscriber
from tests.service.running import T0, Live


@pytest.mark.parametrize("value", ["-1e308", "1e308", "-1", "1" + "0" * 400])
def test_a_time_out_of_range_is_refused_in_every_field(service: Live, value: str) -> None:
    def post(path: str, body: str, method: str = "POST") -> int:
        return service.http.request(
            method, path, content=body, headers={"content-type": "application/json"}
        ).status_code

    before = service.dump()
    response = service.http.post(
        "/events",
        content=f'[{{"video_id":"a","time":{value},"type":"view"}}]',
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (400, 422)
    assert post("/videos/b", f'{{"published_at":{value}}}', "PUT") in (400, 422)
    assert post("/predict", f'{{"video":{{"video_id":"a","published_at":{T0}}},"at":{value}}}') in (400, 422)
    assert service.http.get(f"/videos/a/forecast?at={value}").status_code in (404, 422)
    assert service.dump() == before


def test_a_field_name_that_is_not_utf_8_is_named(service: Live) -> None:
    service.register("a")
    body = f'[{{"video_id":"a","time":{T0 + 5},"type":"view"}},{{"video_id":"a","\\ud800":NaN}}]'
    response = service.http.post("/events", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert (response.json()["accepted"], response.json()["rejected"]) == (1, 1)


def test_metadata_of_a_newer_replica_does_not_break_reads(service: Live) -> None:
    service.register("a", title="known")
    about = next(key for key in service.redis.keys("*about"))
    service.redis.set(about, b'{"title":"known","a_field_of_tomorrow":1}')
    service.post("/events", [{"video_id": "a", "time": T0 + 5, "type": "view"}])
    assert service.http.get("/videos/a").json()["title"] == "known"


def test_a_registration_that_fails_in_the_store_is_not_reported_as_done(service: Live) -> None:
    service.redis.set("m3tr:{w}:parked", "not a list")
    answer = service.http.put("/videos/w", json={"published_at": T0})
    assert answer.status_code == 500
    assert service.http.get("/videos/w").status_code == 404


def test_a_deleted_video_leaves_the_rankings_without_the_stream_of_changes(service: Live) -> None:
    service.register("a", title="secret")
    for sort in ("views", "expected", "rising"):
        service.redis.zadd(f"m3tr:{{rank}}:{sort}", {"a": 5})
    service.redis.hset("m3tr:{rank}:rows", "a", b'{"title":"secret"}')
    assert service.http.delete("/videos/a").status_code == 204
    assert not [key for key in service.redis.keys("m3tr:{rank}*") if b"rows" in key or b"views" in key]


def test_the_stream_of_changes_continues_after_broken_entries_and_listeners(redis_url: str, service: Live) -> None:
    heard: list[Any] = []

    class Listener:
        def changed(self, changes: Any) -> None:
            if changes[0][0] == "poison":
                raise RuntimeError("a listener's fault")
            heard.extend(changes)

        def missed(self) -> None:
            heard.append("missed")

    async def follow() -> None:
        changes = ChangeSubscriber(redis_url, 2.0)
        changes.on_change(Listener())
        changes.start()
        await asyncio.sleep(0.2)
        for entry in (b'[["\xff",1]]', msgspec.json.encode([["poison", 1]]), msgspec.json.encode([["fine", 2]])):
            service.redis.xadd("m3tr:changes", {"videos": entry})
            await asyncio.sleep(0.05)
        async with asyncio.timeout(15):
            while not any(change != "missed" for change in heard):
                await asyncio.sleep(0.05)
        await changes.stop()

    asyncio.run(follow())
    assert "missed" in heard and list(next(c for c in heard if c != "missed")) == ["fine", 2]
