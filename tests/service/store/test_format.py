"""A store has a format; a store with another format is refused, at the start and by the export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from index_builder.datasets.export import export_store
from model.errors import DataError
from service.store import keys
from service.store.store import Store
from tests import patience
from tests.service.running import FAKE_COMMAND, ROOT, Process, live, wait_until
from tests.service.store.test_store import REGISTRATION, event, with_store

pytestmark = pytest.mark.slow


def fill(url: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        await store.apply({"v": [event(1)]})

    with_store(url, work)


def test_a_store_without_a_format_has_format_1(empty_redis: str) -> None:
    fill(empty_redis)
    with redis.Redis.from_url(empty_redis) as client:
        assert client.get(keys.FORMAT) is None
        with live(empty_redis) as service:
            wait_until(lambda: client.get(keys.FORMAT))
            assert json.loads(client.get(keys.FORMAT)) == {"format": 1, "bins": 1}
            assert service.http.get("/videos/v").json()["counts"] == {"view": 1}


@pytest.mark.parametrize("stored", ['{"format":2,"bins":1}', '{"format":1,"bins":2}', "garbage"])
def test_another_format_is_refused(
    empty_redis: str, stored: str, tmp_path: Path, fake_process: Callable[..., Process]
) -> None:
    fill(empty_redis)
    with redis.Redis.from_url(empty_redis) as client:
        client.set(keys.FORMAT, stored)
        before = {key: client.dump(key) for key in client.scan_iter()}
        with pytest.raises(AssertionError) as refused:
            fake_process(tmp_path / "data", REDIS_URL=empty_redis, M3TR_STORE_SAFETY="warn")
        text = stored if stored != "garbage" else "cannot be read"
        assert (text in str(refused.value) and "m3tr:format" in str(refused.value)) or text in str(refused.value)
        with pytest.raises(DataError, match="format"):
            export_store(tmp_path / "out", redis_url=empty_redis)
        with live(empty_redis) as service:
            # A service that started while the store was away, and read its format later.
            answer = service.http.get("/health/ready")
            assert answer.status_code == 503 and "format" in answer.json()["detail"]
        assert {key: value for key, value in before.items() if b"{v}" in key} == {
            key: client.dump(key) for key in client.scan_iter() if b"{v}" in key
        }


def test_the_command_fails_with_one_line(empty_redis: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(empty_redis) as client:
        client.set(keys.FORMAT, '{"format":9,"bins":1}')
    done = patience.run(
        FAKE_COMMAND, cwd=ROOT, capture_output=True, text=True, seconds=60, env=_environment(empty_redis)
    )
    assert done.returncode != 0 and '"format":9' in done.stderr


def _environment(url: str) -> dict[str, str]:
    return {**os.environ, "REDIS_URL": url, "M3TR_STORE_SAFETY": "warn", "M3TR_PORT": "0"}
