"""A deleted video leaves every bank, key, stream and file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bank import BankVideo, Curve, EmbeddedBank
from model.bank.tombstone import tombstone
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.forgetting import forgetting
from service.store import keys
from service.store.redis.embedded_server import EmbeddedServer
from tests.copies import copy_tree
from tests.service.fakes import FakeForecaster, FakePool
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

DIMS = 8, 4
NAME = "qZ7-tombstone-Xk93"
OTHER = "another"


def bank_video(video_id: str) -> BankVideo:
    vector = np.arange(1, DIMS[0] + 1, dtype=np.float32)
    none = np.zeros(0, np.int64)
    return BankVideo(video_id, T0 * 1_000_000, None, None, vector, {}, Curve(none, none), T0 * 1_000_000)


def make_bank(path: Path, *names: str) -> Path:
    with EmbeddedBank.build(path, *DIMS) as bank:
        bank.upsert([bank_video(name) for name in names])
    return path


def open_bank(path: Path) -> EmbeddedBank:
    return EmbeddedBank.open(path, *DIMS)


def files_with(path: Path, text: str) -> list[str]:
    return sorted(str(file) for file in path.rglob("*") if file.is_file() and text.encode() in file.read_bytes())


def everything(client: Any) -> dict[bytes, bytes]:
    """The content of the store: each key with its value, as text."""
    found = {}
    for key in client.scan_iter():
        kind = client.type(key).decode()
        read = {
            "string": client.get,
            "hash": client.hgetall,
            "list": lambda k: client.lrange(k, 0, -1),
            "set": client.smembers,
            "zset": lambda k: client.zrange(k, 0, -1, withscores=True),
            "stream": client.xrange,
        }[kind]
        found[key] = repr(read(key)).encode()
    return found


def keys_with(client: Any, text: str) -> list[bytes]:
    return sorted(key for key, value in everything(client).items() if text.encode() in key + value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "own", appendfsync="everysec")
    server.start()
    yield server
    server.stop()


def fill(service: Live) -> None:
    """Store both videos in every structure that can hold a video."""
    for name in (NAME, OTHER):
        service.post("/events", [{"video_id": name, "time": T0 + 1, "type": "view", "id": f"{name}-parked"}])
        service.register(name, T0, title=f"title of {name}")
        now = time.time()
        rows = [{"video_id": name, "time": now, "type": "view", "id": f"{name}-{i}"} for i in range(3)]
        service.post("/events", rows)
        service.post("/counters", [{"video_id": name, "time": now, "likes": 3}])
        assert service.http.get(f"/videos/{name}/forecast").status_code == 200
        for kind, row in (("events", rows[0]), ("events", {**rows[0], "type": "no such type"})):
            service.redis.xadd(keys.INGEST, {"kind": kind, "row": json.dumps(row)})
        service.redis.zadd(keys.maturing("some-bank"), {name: 5})
    both = [{"video_id": name, "time": T0 + 9, "type": "no such type"} for name in (NAME, OTHER)]
    service.redis.xadd(keys.INGEST_DEAD, {"kind": "events", "rows": json.dumps(both), "entry": "1-1", "reason": "{}"})
    service.redis.zadd(keys.MATURING, {keys.maturing("some-bank"): int(time.time())})
    wait_until(lambda: len(service.http.get("/videos?sort=views").json()["videos"]) == 2)
    wait_until(lambda: service.redis.keys(keys.label_key("made:*")))
    wait_until(lambda: service.redis.xlen(keys.INGEST_DEAD) == 3)


BUSY: dict[str, Any] = {"labels": 1000, "ranking_forecasts": 100, "ingest_stream": True, "ingest_claim_s": 0.2}


def test_no_key_and_no_file_holds_a_deleted_video(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "REWRITE_S", 1.0)
    bank = open_bank(make_bank(tmp_path / "bank", NAME, OTHER))
    with live(server.url, bank=bank, **BUSY) as service:
        fill(service)
        assert len(keys_with(service.redis, NAME)) > 10
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
        assert keys_with(service.redis, NAME) == []
        assert service.http.get(f"/videos/{NAME}").status_code == 404
        assert bank.counts()["videos"] == 1
        # The other video is not affected.
        assert service.http.get(f"/videos/{OTHER}").json()["counts"] == {"view": 4, "like": 3}
        [dead] = [f for _, f in service.redis.xrange(keys.INGEST_DEAD) if b"rows" in f]
        assert [row["video_id"] for row in json.loads(dead[b"rows"])] == [OTHER]
        assert service.redis.zrange(keys.maturing("some-bank"), 0, -1) == [OTHER.encode()]
        wait_until(lambda: files_with(tmp_path / "own", NAME) == [])
        assert files_with(tmp_path / "own", OTHER)
    bank.close()
    assert files_with(tmp_path, NAME) == []
    assert files_with(tmp_path / "bank", OTHER)
    with live(server.url, **BUSY) as service:
        time.sleep(0.5)
        assert keys_with(service.redis, NAME) == []


def test_every_replica_and_every_later_opened_bank_applies_the_deletion(empty_redis: str, tmp_path: Path) -> None:
    here, there, down = (open_bank(make_bank(tmp_path / name, NAME, OTHER)) for name in ("here", "there", "down"))
    down.close()
    with live(empty_redis, bank=here) as first, live(empty_redis, bank=there) as second:
        first.register(NAME)
        assert second.http.get(f"/videos/{NAME}").status_code == 200
        assert first.http.delete(f"/videos/{NAME}").status_code == 204
        assert here.counts()["videos"] == 1
        wait_until(lambda: there.counts()["videos"] == 1, 5)
        wait_until(lambda: NAME not in second.context.engine.cached(), 5)
        # A model that is loaded later, and a model of the next replica.
        later = open_bank(make_bank(tmp_path / "later", NAME, OTHER))
        model: Any = FakeForecaster()
        states: Any = FakePool()
        deployment = Deployment(model, BankCircuitBreaker(later, second.context.metrics), states)
        kept = second.context.models._kept
        kept["later"] = deployment
        wait_until(lambda: later.counts()["videos"] == 1, 5)
        del kept["later"]
        later.close()
    reopened = open_bank(tmp_path / "down")
    assert reopened.counts()["videos"] == 2
    with live(empty_redis, bank=reopened):
        assert reopened.counts()["videos"] == 1
    for bank in (here, there, reopened):
        bank.close()


def test_video_known_only_to_a_bank_is_forgotten(empty_redis: str, tmp_path: Path) -> None:
    bank = open_bank(make_bank(tmp_path / "bank", NAME, OTHER))
    with live(empty_redis, bank=bank) as service:
        assert service.http.delete(f"/videos/{NAME}").status_code == 404
        assert bank.counts()["videos"] == 1
    bank.close()
    again = open_bank(make_bank(tmp_path / "trained anew", NAME, OTHER))
    with live(empty_redis, bank=again):
        assert again.counts()["videos"] == 1
    again.close()


def test_video_registered_again_is_a_new_video(empty_redis: str, tmp_path: Path) -> None:
    path = make_bank(tmp_path / "bank", NAME, OTHER)
    old = copy_tree(path, tmp_path / "old")
    bank = open_bank(path)
    with live(empty_redis, bank=bank) as service:
        service.register(NAME)
        service.redis.zadd(keys.MATURING, {keys.maturing("some-bank"): int(time.time())})
        service.post("/events", [{"video_id": NAME, "time": T0 + 1, "type": "view", "id": "one"}])
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
        service.register(NAME)
        service.post("/events", [{"video_id": NAME, "time": T0 + 1, "type": "view", "id": "one"}])
        assert service.http.get(f"/videos/{NAME}").json()["counts"] == {"view": 1}
        # It is scheduled for the bank again, also in a replica that knew the first one.
        assert service.redis.zrange(keys.maturing("some-bank"), 0, -1) == [NAME.encode()]
        bank.upsert([bank_video(NAME)])
        time.sleep(1.5)
        assert bank.counts()["videos"] == 2
    bank.close()
    # A bank that applied the deletion keeps the new video; one that still has the first drops that.
    for folder, videos in ((path, 2), (old, 1)):
        bank = open_bank(folder)
        with live(empty_redis, bank=bank) as service:
            time.sleep(1.2)
            assert bank.counts()["videos"] == videos
            assert service.http.get(f"/videos/{NAME}").status_code == 200
        bank.close()


def test_deletion_works_at_maxmemory(server: EmbeddedServer, tmp_path: Path) -> None:
    bank = open_bank(make_bank(tmp_path / "bank", NAME, OTHER))
    with live(server.url, bank=bank, **BUSY) as service:
        fill(service)
        service.redis.config_set("maxmemory", "1mb")
        assert (
            service.http.post("/events", json=[{"video_id": OTHER, "time": T0 + 5, "type": "view"}]).status_code == 503
        )
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
        assert keys_with(service.redis, NAME) == []
        assert bank.counts()["videos"] == 1
        service.redis.config_set("maxmemory", 0)
    bank.close()


def test_rows_waiting_in_the_stream_are_deleted_with_their_video(server: EmbeddedServer) -> None:
    row = {"time": T0 + 5, "type": "view"}
    with live(server.url) as service:
        for name in (NAME, OTHER):
            service.register(name)
        both = [{"video_id": NAME, **row}, {"video_id": OTHER, **row}]
        service.redis.xadd(keys.INGEST, {"kind": "events", "row": json.dumps(both[0])})
        service.redis.xadd(keys.INGEST, {"kind": "events", "rows": json.dumps(both)})
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
        assert service.redis.xlen(keys.INGEST) == 1
        time.sleep(0.01)
        service.redis.xadd(keys.INGEST, {"kind": "events", "rows": json.dumps(both)})
    with live(server.url, ingest_stream=True, ingest_claim_s=0.2) as service:
        wait_until(lambda: service.http.get(f"/videos/{OTHER}").json()["counts"] == {"view": 2})
        # Only rows from after the deletion are parked.
        assert service.redis.llen(keys.video_prefix(NAME) + "parked") == 1


def test_many_deletions_share_one_sweep(empty_redis: str) -> None:
    with live(empty_redis) as service:
        names = [f"{NAME}-{i}" for i in range(200)]
        for name in names:
            service.register(name)
        started = time.monotonic()
        for name in names:
            assert service.http.delete(f"/videos/{name}").status_code == 204
        assert time.monotonic() - started < 30
        assert keys_with(service.redis, NAME) == []
        assert service.redis.zcard(keys.FORGOTTEN) == 200
        assert service.redis.zscore(keys.FORGOTTEN, tombstone(names[0])) is not None


def test_labels_of_a_release_without_an_index_are_deleted(empty_redis: str) -> None:
    with live(empty_redis, labels=1000, label_horizons_s="3600") as service:
        for name in (NAME, OTHER):
            service.register(name, time.time() - 60)
        made = lambda: [(k, service.redis.hlen(k)) for k in service.redis.keys(keys.label_key("made:*"))]  # noqa: E731
        wait_until(lambda: sum(n for _, n in made()) == 2)
        service.redis.delete(*service.redis.keys(keys.label_key("of:*")))
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
        assert keys_with(service.redis, NAME) == [] and sum(n for _, n in made()) == 1


def test_bank_that_is_down_forgets_when_it_answers_again(empty_redis: str, tmp_path: Path) -> None:
    bank = open_bank(make_bank(tmp_path / "bank", NAME, OTHER))
    with live(empty_redis, bank=bank) as service:
        service.register(NAME)
        hold, bank._folder_lock = bank._folder_lock, None
        answer = service.http.delete(f"/videos/{NAME}")
        assert (answer.status_code, answer.json()["part"]) == (503, "bank")
        bank._folder_lock = hold
        wait_until(lambda: bank.counts()["videos"] == 1, 5)
        assert service.http.delete(f"/videos/{NAME}").status_code == 204
    bank.close()
