from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from service.store.redis.embedded_server import EmbeddedServer
from tests.service.redis_clients import connected
from tests.service.running import FAKE_COMMAND, Live, Process, live
from tests.service.servers import cluster

ON_CLUSTER = os.environ.get("M3TR_TEST_STORE") == "cluster"
"""Whether tests use a cluster of three shards as their shared server."""

if ON_CLUSTER:
    redis.Redis.from_url = staticmethod(connected)  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real embedded server; or a cluster of three shards."""
    if ON_CLUSTER:
        with cluster(tmp_path_factory.mktemp("cluster")) as shards:
            yield shards.url
        return
    server = EmbeddedServer(tmp_path_factory.mktemp("redis"), appendfsync="everysec")
    server.start()
    yield server.url
    server.stop()


Starter = Callable[..., Process]


@pytest.fixture
def fake_process() -> Iterator[Starter]:
    """Starts service processes with the fake model; they are killed at the end of the test."""
    started: list[Process] = []

    def start(data_dir: Path, **environment: str) -> Process:
        started.append(Process(FAKE_COMMAND, data_dir, **environment))
        return started[-1]

    yield start
    for process in started:
        process.clean_up()


@pytest.fixture(scope="session")
def running(redis_url: str) -> Iterator[Live]:
    with live(redis_url) as service:
        yield service


@pytest.fixture
def service(running: Live) -> Live:
    """A service over HTTP with an empty store."""
    running.redis.flushall()
    return running


@pytest.fixture
def empty_redis(redis_url: str) -> str:
    """URL of the shared server, emptied."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url
