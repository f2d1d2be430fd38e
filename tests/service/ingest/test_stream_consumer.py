"""Rows from the Redis stream count exactly once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import httpx
import pytest
import redis

from service.ingest.stream_consumer import GROUP, Consumer
from service.settings import Settings
from service.store import keys
from service.store.redis.embedded_server import EmbeddedServer
from service.store.rows.outcome import Outcome
from service.wiring import new_metrics
from tests.service.running import T0, Live, Process, live, wait_until

pytestmark = pytest.mark.slow

VIEW = {"video_id": "v", "time": T0 + 5, "type": "view"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A store of its own: on the shared one, another service would take the rows."""
    server = EmbeddedServer(tmp_path / "own", appendfsync="everysec")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fed(server: EmbeddedServer) -> Iterator[Live]:
    with live(server.url, ingest_claim_s=0.2, ingest_stream=True) as service:
        service.register("v")
        yield service


def produce(service: Live, *rows: Any, kind: str = "events", together: bool = False) -> list[bytes]:
    with service.redis.pipeline() as pipe:
        if together:
            pipe.xadd(keys.INGEST, {"kind": kind, "rows": json.dumps(rows)})
        else:
            for row in rows:
                pipe.xadd(keys.INGEST, {"kind": kind, "row": json.dumps(row)})
        return pipe.execute()


def counts(service: Live) -> dict[str, int]:
    return service.http.get("/videos/v").json()["counts"]


def pending(service: Live) -> int:
    try:
        [group] = [one for one in service.redis.xinfo_groups(keys.INGEST) if one["name"] == GROUP.encode()]
    except (redis.ResponseError, ValueError):
        return -1
    return group["pending"] + group["lag"]


def dead(service: Live) -> list[dict[str, Any]]:
    return [
        {**{name.decode(): value.decode() for name, value in fields.items()}, "reason": json.loads(fields[b"reason"])}
        for _, fields in service.redis.xrange(keys.INGEST_DEAD)
    ]


def test_rows_are_stored_and_acknowledged(fed: Live) -> None:
    assert not fed.redis.exists(keys.INGEST)
    produce(fed, VIEW, VIEW, {**VIEW, "id": "mine"}, {**VIEW, "id": "mine"})
    produce(fed, VIEW, VIEW, together=True)
    produce(fed, {"video_id": "v", "time": T0 + 9, "likes": 4}, kind="counters")
    wait_until(lambda: pending(fed) == 0)
    assert counts(fed) == {"view": 5, "like": 4} and dead(fed) == []
    produce(fed, *[VIEW] * 3000)
    wait_until(lambda: pending(fed) == 0)
    assert counts(fed)["view"] == 3005
    wait_until(lambda: "m3tr_ingest_stream_lag_entries 0.0" in fed.http.get("/metrics").text)


def test_a_second_delivery_changes_nothing(fed: Live) -> None:
    # Another group, which has read nothing, keeps every entry.
    fed.redis.xgroup_create(keys.INGEST, "keeper", id="0-0", mkstream=True)
    produce(fed, VIEW, VIEW, together=True)
    produce(fed, VIEW, {"video_id": "v", "time": T0 + 9, "likes": 4}, kind="events")
    wait_until(lambda: pending(fed) == 0)
    before = fed.http.get("/videos/v").json()
    fed.redis.xgroup_setid(keys.INGEST, GROUP, "0-0")
    wait_until(lambda: pending(fed) == 0)
    assert before["counts"] == {"view": 3}
    assert fed.http.get("/videos/v").json() == before


def test_entries_of_a_dead_replica_are_claimed(fed: Live) -> None:
    produce(fed, VIEW)
    wait_until(lambda: pending(fed) == 0)
    with fed.redis.pipeline() as pipe:
        for _ in range(10):
            pipe.xadd(keys.INGEST, {"kind": "events", "row": json.dumps(VIEW)})
        pipe.xreadgroup(GROUP, "ghost", {keys.INGEST: ">"}, count=10)
        pipe.execute()
    wait_until(lambda: pending(fed) == 0)
    assert counts(fed) == {"view": 11}


def test_rows_that_cannot_be_stored_become_dead_letters(fed: Live) -> None:
    produce(fed, VIEW, {**VIEW, "type": "clap"}, 7, together=True)
    fed.redis.xadd(keys.INGEST, {"kind": "events", "row": "{"})
    fed.redis.xadd(keys.INGEST, {"kind": "what", "row": "{}"})
    fed.redis.xadd(keys.INGEST, {"kind": "events"})
    fed.redis.xadd(keys.INGEST, {"kind": "events", "rows": "{}"})
    produce(fed, {**VIEW, "time": T0 - 1})
    produce(fed, VIEW)
    wait_until(lambda: pending(fed) == 0)
    assert counts(fed) == {"view": 2}
    buried = sorted(dead(fed), key=lambda entry: entry["entry"])
    assert [entry["reason"]["reason"] for entry in buried].count("malformed") == 4
    assert {entry["reason"].get("field") for entry in buried} == {"type", "row", "kind", "rows", "time", None}
    clap = next(entry for entry in buried if entry["reason"].get("field") == "type")
    assert json.loads(clap["row"])["type"] == "clap" and clap["kind"] == "events" and clap["reason"]["value"] == "clap"
    assert f"m3tr_ingest_stream_dead_rows_total {len(buried)}.0" in fed.http.get("/metrics").text


def test_an_entry_that_fails_five_deliveries_becomes_a_dead_letter(server: EmbeddedServer) -> None:
    with live(server.url, ingest_claim_s=0.05, ingest_stream=True) as service:
        service.register("v")
        take, tries = service.context.ingest.take, 0

        async def poisoned(kind: Any, items: Any) -> Any:
            nonlocal tries
            if any("poison" in item for item in items):
                tries += len(items) == 1
                raise RuntimeError("poison")
            return await take(kind, items)

        [consumer] = [work for work in service.context.background if isinstance(work, Consumer)]
        with patch.object(consumer, "_take", poisoned):
            produce(service, VIEW, {"poison": 1}, VIEW)
            wait_until(lambda: dead(service) and pending(service) == 0)
        assert tries == 5 and counts(service) == {"view": 2}
        [entry] = dead(service)
        assert entry["reason"]["reason"] == "deliveries" and json.loads(entry["row"]) == {"poison": 1}


def test_an_entry_that_kills_its_consumers_becomes_one_dead_letter(server: EmbeddedServer) -> None:
    """Each consumer that takes the poisonous entry ends at once without acknowledging, like a killed process."""
    taken: list[Any] = []

    async def take(kind: Any, items: Any) -> Outcome:
        if any("poison" in item for item in items):
            raise asyncio.CancelledError
        taken.extend(item["video_id"] for item in items)
        return Outcome(accepted=len(items))

    async def die() -> None:
        consumer = Consumer(server.url, take, metrics, deadline_s=5, claim_s=0.05, batch_rows=100)
        consumer.start()
        await asyncio.wait([cast(asyncio.Task[None], consumer._task)], timeout=0.7)
        await consumer.stop()

    async def deaths() -> None:
        for _ in range(8):
            await die()

    metrics = new_metrics(Settings(bundle=Path("unused")))
    with redis.Redis.from_url(server.url) as client:
        for i in range(100):
            row = {"poison": 1} if i == 30 else {**VIEW, "video_id": f"v{i}"}
            client.xadd(keys.INGEST, {"kind": "events", "row": json.dumps(row)})
        asyncio.run(deaths())
        [[_, fields]] = client.xrange(keys.INGEST_DEAD)
        assert json.loads(fields[b"row"]) == {"poison": 1} and json.loads(fields[b"reason"])["reason"] == "deliveries"
        assert sorted(set(taken)) == sorted(f"v{i}" for i in range(100) if i != 30)
        assert client.xpending(keys.INGEST, GROUP)["pending"] == 0


def test_acknowledged_entries_are_trimmed(fed: Live) -> None:
    produce(fed, VIEW, VIEW)
    fed.redis.xgroup_create(keys.INGEST, "other", id="0-0")
    produce(fed, *[VIEW] * 8)
    wait_until(lambda: pending(fed) == 0)
    # The other group has read two entries and acknowledged one of them.
    [[_, [(first, _), (second, _)]]] = fed.redis.xreadgroup("other", "it", {keys.INGEST: ">"}, count=2)
    fed.redis.xack(keys.INGEST, "other", first)
    wait_until(lambda: fed.redis.xrange(keys.INGEST, count=1)[0][0] == second)
    assert fed.redis.xlen(keys.INGEST) == 9
    fed.redis.xgroup_destroy(keys.INGEST, "other")
    wait_until(lambda: fed.redis.xlen(keys.INGEST) == 0)
    produce(fed, VIEW)
    wait_until(lambda: counts(fed) == {"view": 11})


def test_a_retryable_rejection_is_delivered_again(server: EmbeddedServer) -> None:
    with live(server.url, ingest_claim_s=0.3, ingest_stream=True, park_rows=0) as service:
        produce(service, VIEW)
        wait_until(lambda: pending(service) == 1 and service.redis.xpending(keys.INGEST, GROUP)["pending"] == 1)
        service.register("v")
        wait_until(lambda: pending(service) == 0)
        assert counts(service) == {"view": 1} and dead(service) == []


def test_a_store_that_restarts(server: EmbeddedServer) -> None:
    with live(server.url, ingest_claim_s=0.2, ingest_stream=True) as service:
        service.register("v")
        produce(service, VIEW)
        wait_until(lambda: pending(service) == 0)
        server.stop()
        server.start()
        wait_until(lambda: service.http.get("/health/ready").status_code == 200)
        produce(service, VIEW)
        wait_until(lambda: pending(service) == 0)
        assert counts(service) == {"view": 2}


def test_a_store_that_is_emptied(fed: Live) -> None:
    produce(fed, VIEW)
    wait_until(lambda: pending(fed) == 0)
    fed.redis.flushall()
    fed.register("v")
    produce(fed, VIEW, VIEW)
    wait_until(lambda: pending(fed) == 0)
    assert counts(fed) == {"view": 2}


def test_kill_9_loses_and_doubles_nothing(
    server: EmbeddedServer, tmp_path: Path, fake_process: Callable[..., Process]
) -> None:
    total = 20_000
    settings = {"REDIS_URL": server.url, "M3TR_INGEST_CLAIM_S": "0.3"}
    first = fake_process(tmp_path / "first", **settings)
    httpx.put(f"{first.url}/videos/v", json={"published_at": T0})
    with redis.Redis.from_url(server.url) as client:
        with client.pipeline() as pipe:
            for _ in range(total):
                pipe.xadd(keys.INGEST, {"kind": "events", "row": json.dumps(VIEW)})
            pipe.execute()
        read = lambda: client.xinfo_groups(keys.INGEST)[0].get("entries-read") or 0  # noqa: E731
        wait_until(lambda: client.xinfo_groups(keys.INGEST) and read() > 500)
        first.kill(server=False)
        assert read() < total
        second = fake_process(tmp_path / "second", **settings)
        wait_until(lambda: read() == total and client.xpending(keys.INGEST, GROUP)["pending"] == 0)
        assert httpx.get(f"{second.url}/videos/v").json()["counts"] == {"view": total}


def test_the_stream_can_be_switched_off(server: EmbeddedServer) -> None:
    with live(server.url, ingest_stream=False) as service:
        service.register("v")
        produce(service, VIEW)
        time.sleep(0.3)
        assert counts(service) == {} and service.redis.xinfo_groups(keys.INGEST) == []
