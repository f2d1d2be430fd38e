"""The primary changes under load: writes continue within two seconds of the new primary, without any restart."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio.cluster import NodesManager
from redis.crc import key_slot

from service.settings import Settings
from service.store import keys
from service.store.functions import connect
from service.wiring import new_metrics
from tests.service.running import T0, Live, live, wait_until
from tests.service.servers import Address, Cluster, RedisProcess, cluster, free_port, pair, sentinels, server

pytestmark = pytest.mark.slow

WITHIN_S = 2.0


class Load(threading.Thread):
    """Writes rows to ``videos`` in turn, each again until it is acknowledged, and notes the time of that."""

    def __init__(self, url: str, videos: list[str]) -> None:
        super().__init__()
        self.url, self.videos = url, videos
        self.end = threading.Event()
        self.acknowledged: dict[str, list[float]] = {video: [] for video in videos}
        self.sent: list[dict[str, Any]] = []
        self.statuses: set[int] = set()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as http:
            while not self.end.is_set():
                for video in self.videos:
                    row = {"video_id": video, "time": T0 + 5, "type": "view", "id": f"r{len(self.sent)}"}
                    while (status := http.post("/events", json=[row]).status_code) != 200:
                        self.statuses.add(status)
                        time.sleep(0.01)
                    self.sent.append(row)
                    self.acknowledged[video].append(time.monotonic())

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.join(30)

    def goes_on(self, since: float, videos: list[str] | None = None) -> float:
        """Seconds from ``since`` until rows of each video are acknowledged again without interruption."""
        chosen = videos or self.videos
        wait_until(lambda: all(sum(at > since for at in self.acknowledged[v]) >= 3 for v in chosen))
        return max(next(at for at in self.acknowledged[v] if at > since) for v in chosen) - since


def is_primary(server: RedisProcess) -> bool:
    with server.client() as client:
        return bool(client.info("replication")["role"] == "master")


def owner_of_first_slot(server: RedisProcess) -> int:
    """The port of the primary of slot 0, as far as ``server`` knows."""
    with server.client() as client:
        spans: Any = client.execute_command("CLUSTER", "SLOTS")
    return int(next(primary[1] for first, _, primary, *_ in spans if first == 0))


def views(service: Live, video: str) -> int:
    return int(service.http.get(f"/videos/{video}").json()["counts"]["view"])


def streamed(service: Live, client: Any) -> None:
    """Check that a row that is added to the stream of the new primary is stored."""
    client.xadd(keys.INGEST, {"kind": "events", "row": json.dumps({"video_id": "v", "time": T0 + 9, "type": "like"})})
    wait_until(lambda: service.http.get("/videos/v").json()["counts"].get("like") == 1, 5)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[RedisProcess, RedisProcess]]:
    with pair(tmp_path) as both:
        yield both


def test_a_planned_failover_behind_one_address(servers: tuple[RedisProcess, RedisProcess]) -> None:
    first, second = servers
    address = Address(first.port)
    try:
        with live(address.url, ingest_stream=True, ingest_claim_s=0.5) as service:
            service.register("v")
            with Load(service.address, ["v"]) as load:
                wait_until(lambda: len(load.sent) > 20)
                with first.client() as client:
                    client.execute_command("FAILOVER", "TO", "127.0.0.1", second.port)
                wait_until(lambda: is_primary(second))
                address.target, since = second.port, time.monotonic()
                assert load.goes_on(since) < WITHIN_S
            wait_until(lambda: not is_primary(first))
            # The servers lost nothing: each acknowledged row is there once.
            assert views(service, "v") == len(load.sent)
            assert load.statuses <= {503}
            with second.client() as client:
                streamed(service, client)
                newest = {entry[b"videos"] for _, entry in client.xrevrange(keys.CHANGES, count=1)}
                assert b'"v"' in newest.pop()
            wait_until(lambda: service.http.get("/health/ready").status_code == 200, 3)
    finally:
        address.close()


def test_connections_to_a_demoted_primary_are_dropped(servers: tuple[RedisProcess, RedisProcess]) -> None:
    first, second = servers
    address = Address(first.port)
    try:
        with live(address.url) as service:
            service.register("v")
            row = {"video_id": "v", "time": T0 + 5, "type": "view"}
            with first.client() as client:
                client.replicaof("127.0.0.1", str(second.port))
            with second.client() as client:
                client.replicaof("NO", "ONE")
            answer = service.http.post("/events", json=[row])
            assert answer.status_code == 503 and "READONLY" in answer.json()["detail"]
            ready = service.http.get("/health/ready")
            assert (
                ready.status_code == 503 and ready.json()["store"] == "refuses" and "READONLY" in ready.json()["detail"]
            )
            answer = service.http.get("/videos/v")
            assert answer.status_code == 200, answer.text
            address.target = second.port
            # No write is lost on a connection to the old primary.
            assert service.http.post("/events", json=[row]).status_code == 200
            wait_until(lambda: service.http.get("/health/ready").status_code == 200, WITHIN_S)
    finally:
        address.close()


def test_a_host_name_that_moves_is_followed_while_the_old_server_runs(tmp_path: Path) -> None:
    with server(tmp_path / "a") as first, server(tmp_path / "b") as second:
        address = Address(first.port)
        try:
            with live(address.url, ingest_stream=True) as service:
                service.register("v")
                address.target = second.port
                wait_until(lambda: service.http.get("/videos/v").status_code == 404, WITHIN_S)
                service.register("v")
                with second.client() as client:
                    streamed(service, client)
        finally:
            address.close()


def test_a_store_that_starts_after_the_service(tmp_path: Path) -> None:
    port = free_port()
    with live(f"redis://127.0.0.1:{port}", ingest_stream=True) as service:
        assert service.http.get("/health/ready").json()["store"] == "down"
        assert service.http.put("/videos/v", json={"published_at": T0}).status_code == 503
        late = RedisProcess(tmp_path, port=port)
        try:
            wait_until(lambda: service.http.get("/health/ready").status_code == 200, WITHIN_S)
            service.register("v")
            with late.client() as client:
                streamed(service, client)
        finally:
            late.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_sentinels_promote_the_replica(
    servers: tuple[RedisProcess, RedisProcess], tmp_path: Path, how: signal.Signals
) -> None:
    first, second = servers
    with sentinels(tmp_path / "s", first) as trio:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in trio)
        with live(f"redis+sentinel://{hosts}/mymaster/0", ingest_stream=True, ingest_claim_s=0.5) as service:
            service.register("v")
            with Load(service.address, ["v"]) as load:
                wait_until(lambda: len(load.sent) > 20)
                with first.client() as client:
                    # Only what the replica has is kept: wait until it has everything that was acknowledged so far.
                    assert client.wait(1, 2000) == 1
                known = len(load.sent) - 1
                first.popen.send_signal(how)
                wait_until(lambda: is_primary(second), 30)
                since = time.monotonic()
                assert load.goes_on(since) < WITHIN_S
            try:
                again = service.post("/events", load.sent[:known])
                assert again["accepted"] == 0 and again["duplicate"] == known
                late = [row for row, at in zip(load.sent, load.acknowledged["v"], strict=True) if at > since]
                assert service.post("/events", late)["duplicate"] == len(late)
                with second.client() as client:
                    streamed(service, client)
                wait_until(lambda: service.http.get("/health/ready").status_code == 200, 3)
            finally:
                first.popen.send_signal(signal.SIGCONT)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, replicas=3) as nodes:
        yield nodes


def by_shard(client: Any) -> dict[int, str]:
    """A video id for each shard, by the port of its primary."""
    found: dict[int, str] = {}
    for i in range(100):
        found.setdefault(client.get_node_from_key(keys.video_prefix(f"v{i}")).port, f"v{i}")
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_shard_fails_over(shards: Cluster, how: signal.Signals) -> None:
    with shards.client() as client:
        videos = by_shard(client)
    assert len(videos) == 3
    # A plain address of one node, which keeps running.
    with live(shards.nodes[1].url) as service:
        for video in videos.values():
            service.register(video)
        lost = videos.pop(shards.nodes[0].port)
        rest = list(videos.values())
        with Load(service.address, rest) as others, Load(service.address, [lost]) as load:
            wait_until(lambda: min(len(others.sent), len(load.sent)) > 20)
            shards.nodes[0].popen.send_signal(how)
            wait_until(lambda: is_primary(shards.nodes[3]), 30)
            since = time.monotonic()
            assert load.goes_on(since) < WITHIN_S
            assert others.goes_on(since) < WITHIN_S
        assert all(views(service, video) == len(others.acknowledged[video]) for video in rest)
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, 3)


def test_a_map_from_a_node_that_does_not_know_of_the_change_is_fetched_again(
    shards: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        link = connect(shards.url, new_metrics(Settings(bundle=Path("unused"))), deadline_s=2, connections=4)
        try:
            with shards.client() as client:
                name = next(
                    f"k{i}" for i in range(100) if client.get_node_from_key(f"k{i}").port == shards.nodes[0].port
                )
            assert await link.pipeline("test", [["SET", name, "a"]]) == [True]
            backend: Any = link.server.backend
            manager = backend._redis.nodes_manager
            with shards.nodes[3].client() as replica:
                replica.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
                wait_until(lambda: all(owner_of_first_slot(node) == shards.nodes[3].port for node in shards.nodes))
            fetch, fetches = NodesManager.initialize, []

            async def fetch_late(self: NodesManager, **options: Any) -> None:
                # The first fetch brings the map of before.
                fetches.append(options)
                if len(fetches) > 1:
                    await fetch(self, **options)

            monkeypatch.setattr(NodesManager, "initialize", fetch_late)
            for _ in range(2):
                await backend.refresh()
            assert len(fetches) == 2
            assert manager.get_node_from_slot(key_slot(name.encode())).port == shards.nodes[3].port
            # A map that is right is not fetched again.
            await backend.refresh()
            assert len(fetches) == 2
        finally:
            await link.close()

    asyncio.run(work())


def test_a_shard_that_hangs_does_not_affect_the_others(shards: Cluster) -> None:
    for node in shards.nodes:
        with node.client() as client:
            # No failover, and the other shards continue.
            client.config_set("cluster-node-timeout", 60_000)
    with shards.client() as client:
        videos = by_shard(client)
    with live(shards.url, store_deadline_ms=500) as service:
        for video in videos.values():
            service.register(video)
            service.http.get(f"/videos/{video}").raise_for_status()
        # A shard without the stream of changes or another shared key: those are only written where possible.
        hung = videos.pop(shards.nodes[0].port)
        shards.nodes[0].popen.send_signal(signal.SIGSTOP)
        try:
            row = {"time": T0 + 1, "type": "view"}
            assert service.http.post("/events", json=[{**row, "video_id": hung}]).status_code == 503
            started = time.monotonic()
            for video in videos.values():
                for _ in range(10):
                    assert service.http.post("/events", json=[{**row, "video_id": video}]).status_code == 200
                    assert service.http.get(f"/videos/{video}").json()["stale"] is False
            assert service.http.get(f"/videos/{hung}").json()["stale"] is True
            assert service.http.post("/events", json=[{**row, "video_id": hung}]).status_code == 503
            assert time.monotonic() - started < 3
            assert service.http.get("/health/ready").status_code == 503
        finally:
            shards.nodes[0].popen.send_signal(signal.SIGCONT)
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, 5)
        assert service.http.post("/events", json=[{**row, "video_id": hung}]).status_code == 200


def test_slots_move_under_load(shards: Cluster) -> None:
    """A call waits while the keys of its video are on two servers, and then finds them on the new one."""
    with shards.client() as client, live(shards.url) as service:
        video = by_shard(client)[shards.nodes[0].port]
        slot = client.keyslot(keys.video_prefix(video))
        service.register(video)
        source, target = shards.nodes[0], shards.nodes[1]
        with source.client() as old, target.client() as new, Load(service.address, [video]) as load:
            wait_until(lambda: len(load.sent) > 20)
            ids = [one.execute_command("CLUSTER", "MYID").decode() for one in (old, new)]
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            while moving := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
                old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *moving)
                time.sleep(0.05)
            for one in (new, old):
                one.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            since = time.monotonic()
            assert load.goes_on(since) < WITHIN_S
        assert views(service, video) == len(load.sent)
        assert service.http.get(f"/videos/{video}").json()["counts"] == {"view": len(load.sent)}


def test_a_single_key_is_found_while_its_slot_moves(shards: Cluster) -> None:
    async def work() -> None:
        link = connect(shards.url, new_metrics(Settings(bundle=Path("unused"))), deadline_s=2, connections=4)
        try:
            with shards.client() as client, shards.nodes[0].client() as old, shards.nodes[1].client() as new:
                name = next(
                    f"k{i}" for i in range(100) if client.get_node_from_key(f"k{i}").port == shards.nodes[0].port
                )
                slot = client.keyslot(name)
                ids = [one.execute_command("CLUSTER", "MYID").decode() for one in (old, new)]
                assert await link.pipeline("test", [["SET", name, "a"]] * 20) == [True] * 20
                new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
                old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
                assert await link.pipeline("test", [["GET", name]]) == [b"a"], "not on its way yet"
                old.execute_command("MIGRATE", "127.0.0.1", shards.nodes[1].port, name, 0, 5000)
                found = await asyncio.gather(*(link.pipeline("test", [["GET", name], ["PING"]]) for _ in range(8)))
                assert [reply[0] for reply in found] == [b"a"] * 8
        finally:
            await link.close()

    asyncio.run(work())


def test_a_scan_covers_every_shard(shards: Cluster) -> None:
    async def work() -> list[str]:
        link = connect(shards.url, new_metrics(Settings(bundle=Path("unused"))), deadline_s=2, connections=4)
        try:
            await link.pipeline("test", [["SET", f"{keys.video_prefix(f'v{i}')}meta", "x"] for i in range(500)])
            names, cursor = [], ""
            while True:
                cursor, found = await link.scan("test", cursor, keys.EVERY_META, 50)
                names += [keys.video_id_of(name) for name in found]
                if not cursor:
                    return names  # type: ignore[return-value]
        finally:
            await link.close()

    assert sorted(set(asyncio.run(work()))) == sorted(f"v{i}" for i in range(500))


def test_functions_are_loaded_again_on_every_primary(shards: Cluster) -> None:
    with shards.client() as client, live(shards.url) as service:
        videos = list(by_shard(client).values())
        for video in videos:
            service.register(video)
        empty: Callable[[RedisProcess], Any]
        for empty in (lambda node: node.client().function_flush(), lambda node: node.client().flushall()):
            for node in shards.nodes[:3]:
                empty(node)
            for video in videos:
                assert service.http.put(f"/videos/{video}", json={"published_at": T0}).status_code == 200
            rows = [{"video_id": video, "time": T0 + 1, "type": "view"} for video in videos]
            assert service.post("/events", rows)["accepted"] == 3
