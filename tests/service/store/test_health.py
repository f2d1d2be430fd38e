"""A refusal of the event store is named, and shown by readiness at once; a closed connection fails no request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis._parsers.base import BaseParser

from service.problems import Unavailable
from service.settings import Settings
from service.store.functions import connect
from service.store.health import StoreRefused, check_at_start
from service.store.redis import checked_connections
from service.store.redis.failures import NO_ANSWER, detail_of, kind_of
from service.wiring import new_metrics
from tests.service.running import T0, Live, live, wait_until
from tests.service.servers import RedisProcess, server

pytestmark = pytest.mark.slow

ROW = {"video_id": "v", "time": T0 + 5, "type": "view"}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    with server(tmp_path / "redis", "--enable-protected-configs", "yes") as process:
        yield process


def ready(service: Live) -> httpx.Response:
    return service.http.get("/health/ready")


def metric(service: Live, name: str) -> float | None:
    found = [line for line in service.http.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[-1]) if found else None


def burst(service: Live, n: int) -> list[int]:
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda _: service.http.post("/events", json=[ROW]).status_code, range(n)))


def test_connections_that_the_server_closed_while_idle_cost_no_request(tmp_path: Path) -> None:
    with (
        server(tmp_path, "--timeout", "1") as redis_server,
        # As many connections as possible: each small batch is a commit of its own.
        live(redis_server.url, ingest_round_rows=1, writes_in_flight=64) as service,
        redis_server.client() as client,
    ):
        service.register("v")
        for _ in range(3):
            with ThreadPoolExecutor(24) as pool:
                asked = [pool.submit(service.http.get, f"/videos/u{i}/forecast") for i in range(24)]
                assert {one.result().status_code for one in asked} <= {404}
            assert set(burst(service, 24)) == {200}
            wait_until(lambda: client.info("clients")["connected_clients"] <= 3)
        text = service.http.get("/metrics").text
        assert "m3tr_store_failures_total{" not in text and "m3tr_store_errors_total{" not in text


def test_connections_closed_while_the_loop_is_busy(redis_server: RedisProcess) -> None:
    """The event loop is busy while the server closes the connections: only the kernel has noticed."""

    async def work() -> None:
        link = connect(redis_server.url, new_metrics(Settings(bundle=Path("unused"))), deadline_s=2, connections=8)
        try:
            for _ in range(5):
                await asyncio.gather(*(link.pipeline("test", [["PING"]]) for _ in range(8)))
                with redis_server.client() as client:
                    client.client_kill_filter(_type="normal", skipme=True)
                time.sleep(0.3)
                assert await asyncio.gather(*(link.pipeline("test", [["PING"]]) for _ in range(8))) == [[True]] * 8
        finally:
            await link.close()

    asyncio.run(work())


def test_idle_connections_are_replaced(redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer drops idle connections silently."""
    monkeypatch.setattr(checked_connections, "IDLE_S", 0.3)

    async def work() -> list[int]:
        link = connect(redis_server.url, new_metrics(Settings(bundle=Path("unused"))), deadline_s=2, connections=1)
        try:
            found = []
            for rest_s in (0, 0.05, 0.5):
                await asyncio.sleep(rest_s)
                found += await link.pipeline("test", [["CLIENT", "ID"]])
            return found
        finally:
            await link.close()

    first, second, third = asyncio.run(work())
    assert first == second < third


def test_a_call_whose_reply_is_lost_is_not_repeated(redis_server: RedisProcess) -> None:
    async def work() -> None:
        metrics = new_metrics(Settings(bundle=Path("unused")))
        link = connect(redis_server.url, metrics, deadline_s=2, connections=8)
        try:
            await link.pipeline("test", [["PING"]])
            slow = asyncio.create_task(link.pipeline("test", [["INCR", "n"], ["BLPOP", "nothing", "30"]]))
            with redis_server.client() as client:
                while not client.get("n"):
                    await asyncio.sleep(0.01)
                for one in client.client_list():
                    if one["cmd"] == "blpop":
                        client.client_kill(one["addr"])
            with pytest.raises(Unavailable, match="closed the connection") as raised:
                await slow
            assert raised.value.extra["reason"] == "CLOSED"
            assert await link.pipeline("test", [["GET", "n"]]) == [b"1"]
        finally:
            await link.close()

    asyncio.run(work())


def refuse(client: Any, how: str) -> None:
    if how == "OOM":
        client.config_set("maxmemory", 1)
    elif how == "NOREPLICAS":
        client.config_set("min-replicas-to-write", 1)
    elif how == "READONLY":
        client.replicaof("127.0.0.1", "1")
    elif how == "NOPERM":
        client.execute_command("ACL", "SETUSER", "default", "-fcall")
    else:
        client.config_set("dir", "/proc")
        client.config_set("save", "1 1")
        client.config_set("stop-writes-on-bgsave-error", "yes")
        client.set("x", 1)
        client.bgsave()


def allow(client: Any, how: str) -> None:
    client.config_set("maxmemory", 0)
    client.config_set("min-replicas-to-write", 0)
    client.config_set("stop-writes-on-bgsave-error", "no")
    client.replicaof("NO", "ONE")
    client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize("how", ["OOM", "NOREPLICAS", "READONLY", "MISCONF"])
def test_a_refused_write_is_named_and_reads_continue(redis_server: RedisProcess, how: str) -> None:
    with live(redis_server.url) as service, redis_server.client() as client:
        service.register("v")
        service.post("/events", [ROW])
        assert ready(service).status_code == 200 and metric(service, "m3tr_store_takes_writes") == 1
        refuse(client, how)
        try:
            wait_until(lambda: service.http.post("/events", json=[ROW]).status_code == 503)
            answer = service.http.post("/events", json=[ROW])
            assert (answer.status_code, answer.json()["reason"]) == (503, how) and how in answer.json()["detail"]
            response = ready(service)
            assert (
                response.status_code == 503
                and response.json()["store"] == "refuses"
                and how in response.json()["detail"]
            )
            assert metric(service, "m3tr_store_takes_writes") == 0
            assert (metric(service, f'm3tr_store_errors_total{{kind="{how}"}}') or 0) >= 2
            answer = service.http.get("/videos/v")
            assert answer.status_code == 200 and answer.json()["stale"] is False, answer.text
        finally:
            allow(client, how)
        wait_until(lambda: ready(service).status_code == 200, 3)
        assert service.http.post("/events", json=[ROW]).status_code == 200


def test_readiness_notices_a_refusal_without_traffic(redis_server: RedisProcess) -> None:
    with live(redis_server.url) as service, redis_server.client() as client:
        refuse(client, "OOM")
        wait_until(lambda: ready(service).status_code == 503, 3)
        assert "memory" in ready(service).json()["detail"]


def test_a_slow_script_is_not_taken_for_silence(tmp_path: Path) -> None:
    with server(tmp_path, "--busy-reply-threshold", "50") as busy, live(busy.url) as service, busy.client() as client:
        service.register("v")
        looping = threading.Thread(target=lambda: suppressed(lambda: busy.client().eval("while true do end", 0)))
        looping.start()
        try:
            wait_until(lambda: service.http.post("/events", json=[ROW]).json().get("reason") == "BUSY")
            assert not service.context.redis.server.silent and "BUSY" in ready(service).json()["detail"]
        finally:
            wait_until(lambda: suppressed(client.script_kill))
            looping.join()
        assert service.http.post("/events", json=[ROW]).status_code == 200


def suppressed(work: Callable[[], Any]) -> Any:
    with contextlib.suppress(redis.RedisError):
        return work()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", "LOADING"),
        ("OOM command not allowed", "OOM"),
        ("NOAUTH Authentication required.", "NOAUTH"),
        ("WRONGPASS invalid username-password pair", "WRONGPASS"),
        ("NOPERM this user has no permissions", "NOPERM"),
        ("MISCONF Errors writing to the AOF file", "MISCONF"),
        ("MOVED 3999 127.0.0.1:6381", "MOVED"),
        ("ASK 3999 127.0.0.1:6381", "ASK"),
        ("TRYAGAIN Multiple keys", "TRYAGAIN"),
        ("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN"),
        ("CROSSSLOT Keys in request", "CROSSSLOT"),
        ("BUSY Redis is busy running a script", "BUSY"),
        ("READONLY You can't write", "READONLY"),
        ("MASTERDOWN Link with MASTER is down", "MASTERDOWN"),
        ("ERR Function not found", "NOFUNCTION"),
        ("ERR max number of clients reached", "MAXCLIENTS"),
        ("WRONGTYPE Operation against a key", "WRONGTYPE"),
        ("ERR unknown command", "ERR"),
        ("NOREPLICAS Not enough good replicas", "NOREPLICAS"),
    ],
)
def test_every_error_has_a_kind(text: str, kind: str) -> None:
    assert kind_of(BaseParser.parse_error(text)) == kind
    assert kind in detail_of(kind) or kind in ("MAXCLIENTS", "NOFUNCTION")
    assert (kind in NO_ANSWER) is False


def test_readiness_requests_send_nothing_to_the_store(redis_server: RedisProcess) -> None:
    with live(redis_server.url) as service, redis_server.client() as client:
        before = client.info("stats")["total_commands_processed"]
        for _ in range(300):
            assert ready(service).status_code == 200
        # The background work sends about ten commands a second.
        assert client.info("stats")["total_commands_processed"] - before < 150


@pytest.mark.parametrize(("login", "kind"), [("", "NOAUTH"), (":wrong@", "WRONGPASS")])
def test_missing_and_wrong_passwords_are_distinguished(tmp_path: Path, login: str, kind: str) -> None:
    with (
        server(tmp_path, "--requirepass", "secret") as locked,
        live(f"redis://{login}127.0.0.1:{locked.port}") as service,
    ):
        answer = service.http.post("/events", json=[ROW])
        assert (answer.status_code, answer.json()["reason"]) == (503, kind), answer.text
        assert ready(service).json()["store"] == "refuses" and kind in ready(service).json()["detail"]
        with locked.client(password="secret") as client:
            client.config_set("requirepass", "" if kind == "NOAUTH" else "wrong")
        wait_until(lambda: ready(service).status_code == 200, 3)


def test_a_forbidden_command_is_named(redis_server: RedisProcess) -> None:
    with live(redis_server.url) as service, redis_server.client() as client:
        service.register("v")
        client.execute_command("ACL", "SETUSER", "default", "-fcall")
        assert service.http.post("/events", json=[ROW]).json()["reason"] == "NOPERM"
        client.execute_command("ACL", "SETUSER", "default", "+fcall", "-config")
        wait_until(lambda: ready(service).status_code == 200, 3)


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru", "noeviction"])
def test_a_store_that_may_lose_data_is_reported_or_refused(tmp_path: Path, policy: str) -> None:
    options = ("--maxmemory-policy", policy, "--appendonly", "yes" if policy != "noeviction" else "no")
    reason = "eviction" if policy != "noeviction" else "no_persistence"
    word = policy if policy != "noeviction" else "appendonly"
    with server(tmp_path, *options) as lossy:
        with live(lossy.url) as service:
            response = ready(service)
            assert response.status_code == 200 and [word in text for text in response.json()["store_warnings"]] == [
                True
            ]
            assert metric(service, f'm3tr_store_may_lose_data{{reason="{reason}"}}') == 1
        with live(lossy.url, store_safety="refuse") as service:
            assert ready(service).status_code == 503 and word in ready(service).json()["detail"]
        chosen = Settings(bundle=Path("unused"), redis_url=lossy.url, store_safety="refuse")
        with pytest.raises(StoreRefused, match=word):
            asyncio.run(check_at_start(chosen, new_metrics(chosen)))
        chosen = Settings(bundle=Path("unused"), redis_url=lossy.url)
        asyncio.run(check_at_start(chosen, new_metrics(chosen)))


def test_without_config_the_policy_is_still_known(tmp_path: Path) -> None:
    with server(tmp_path, "--maxmemory-policy", "allkeys-lru") as managed, managed.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-config")
        with live(managed.url) as service:
            assert ["allkeys-lru" in text for text in ready(service).json()["store_warnings"]] == [True]
            assert metric(service, 'm3tr_store_may_lose_data{reason="no_persistence"}') is None, "nobody says"


def test_the_embedded_store_loses_nothing(service: Live) -> None:
    if "cluster" not in service.context.redis.server.address.kind:
        assert ready(service).json()["store_warnings"] == []


@pytest.mark.parametrize("off_s", [90.0, -90.0])
def test_a_wrong_clock_makes_the_service_unready(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    with live(redis_server.url) as service:
        wait_until(lambda: ready(service).status_code == 200)
        offset = metric(service, "m3tr_store_clock_offset_seconds")
        assert offset is not None and abs(offset) < 0.5
        monkeypatch.setattr("service.store.redis.connection.wall_s", lambda: time.time() - off_s)
        wait_until(lambda: ready(service).status_code == 503, 4)
        response = ready(service).json()
        assert "clock" in response["detail"] and "60 s are allowed" in response["detail"] and response["store"] == "ok"
        assert abs(response["clock_offset_s"] - off_s) < 1
        offset = metric(service, "m3tr_store_clock_offset_seconds")
        assert offset is not None and abs(offset - off_s) < 1
        monkeypatch.undo()
        wait_until(lambda: ready(service).status_code == 200, 4)
