"""All keys of a function call share one slot: a server in cluster mode refuses any other call."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.store.redis.embedded_server import packaged_binary
from service.store.rows.row import InputRow
from service.store.store import Registration, Store
from tests.service.running import wait_until
from tests.service.store.test_store import P0, S, with_store

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster_url(tmp_path: Path) -> Iterator[str]:
    sock = tmp_path / "s"
    command = [str(packaged_binary()), "--port", "0", "--unixsocket", str(sock), "--dir", str(tmp_path)]
    process = subprocess.Popen([*command, "--cluster-enabled", "yes"], stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        wait_until(sock.exists)
        with redis.Redis(unix_socket_path=str(sock)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        yield f"unix://{sock}"
    finally:
        process.kill()
        process.wait()


def test_functions_stay_in_one_slot(cluster_url: str) -> None:
    async def work(store: Store) -> None:
        for video in ("a", "b}c", "{}"):
            rows = [InputRow(i, video, P0 + i * S, "events", (("view", 1),), 2, f"id{i}") for i in range(20)]
            assert (await store.apply({video: rows}))[video].outcome.parked == 20
            assert (await store.register(video, Registration(P0, "{}"))).parked_applied == 20
            assert (await store.apply({video: rows}))[video].outcome.duplicate == 20
            snapshot = await store.read(video)
            assert snapshot is not None and snapshot.history.totals() == {"view": 20}
        assert await store.forget("a")

    with_store(cluster_url, work)
