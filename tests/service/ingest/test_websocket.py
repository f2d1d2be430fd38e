"""Rows over a WebSocket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.store.redis.embedded_server import EmbeddedServer
from tests.service.running import T0, Live, Process, live, wait_until

pytestmark = pytest.mark.slow

VIEW = {"video_id": "v", "time": T0 + 5, "type": "view"}


@contextmanager
def socket(url: str, path: str = "/events/stream", **options: Any) -> Iterator[ClientConnection]:
    with connect(url.replace("http", "ws", 1) + path, max_size=None, **options) as made:
        yield made


def open_socket(service: Live, **options: Any) -> Any:
    return socket(str(service.http.base_url).rstrip("/"), **options)


def send(made: ClientConnection, seq: int, rows: list[Any], kind: str = "events") -> None:
    made.send(json.dumps({"seq": seq, "kind": kind, "rows": rows}))


def receive(made: ClientConnection) -> dict[str, Any]:
    return json.loads(made.recv(20))


def closing(made: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        made.recv(20)
    return made.close_code


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path, appendfsync="always")
    server.start()
    yield server
    server.stop()


def test_every_frame_is_answered_in_order(service: Live) -> None:
    service.register("v")
    with open_socket(service) as made:
        for seq in range(100):
            send(made, seq, [{**VIEW, "id": f"{seq}"}, {**VIEW, "id": f"{seq}"}, {**VIEW, "count": -1}])
        answers = [receive(made) for _ in range(100)]
        assert [answer["ack"] for answer in answers] == list(range(100))
        assert {(a["accepted"], a["duplicate"], a["parked"], a["rejected"]) for a in answers} == {(1, 1, 0, 1)}
        assert answers[0]["rejections"][0]["field"] == "count"
        send(made, 7, [{**VIEW, "id": "7"}])
        assert receive(made) == {**empty_ack(7), "duplicate": 1}
        send(made, 8, [{"video_id": "v", "time": T0 + 9, "likes": 4}], "counters")
        send(made, 9, [{**VIEW, "video_id": "unknown"}])
        send(made, 10, [])
        assert receive(made)["accepted"] == 1 and receive(made)["parked"] == 1
        assert receive(made) == empty_ack(10)
    assert service.http.get("/videos/v").json()["counts"] == {"view": 100, "like": 4}
    wait_until(lambda: service.context.row_sockets.connections == 0)


def empty_ack(seq: int) -> dict[str, Any]:
    zeros = dict.fromkeys(("accepted", "duplicate", "parked", "rejected", "corrected"), 0)
    return {"ack": seq, **zeros, "rejections": []}


def test_messagepack_frames(service: Live) -> None:
    service.register("v")
    with open_socket(service) as made:
        made.send(msgspec.msgpack.encode({"seq": 1, "kind": "events", "rows": [VIEW, {1: 2}, {**VIEW, "id": b"x"}, 5]}))
        answer = receive(made)
        assert (answer["ack"], answer["accepted"], answer["rejected"]) == (1, 1, 3)
        made.send(b"\xc1")
        assert receive(made)["error"]["status"] == 400
        assert closing(made) == 1007


@pytest.mark.parametrize(
    ("frame", "status", "field", "code"),
    [
        ("{", 400, None, 1007),
        ("[]", 422, "frame", 1008),
        ('{"seq": 2, "rows": []}', 422, "frame", 1008),
        ('{"seq": 2, "kind": "events", "rows": [], "more": 1}', 422, "frame", 1008),
        ('{"seq": true, "kind": "events", "rows": []}', 422, "seq", 1008),
        ('{"seq": -1, "kind": "events", "rows": []}', 422, "seq", 1008),
        ('{"seq": 2, "kind": ["events"], "rows": []}', 422, "kind", 1008),
        ('{"seq": 2, "kind": "events", "rows": {}}', 422, "rows", 1008),
        ('{"seq": 2, "kind": "events", "rows": [1, 2, 3, 4]}', 422, "rows", 1008),
        ('{"seq": 2, "kind": "events", "rows": []' + " " * 3000 + "}", 413, "frame", 1009),
    ],
)
def test_an_invalid_frame_is_named_and_closes_the_connection(
    empty_redis: str, frame: str, status: int, field: str | None, code: int
) -> None:
    with live(empty_redis, max_body_bytes=2048, max_batch_rows=3) as service:
        service.register("v")
        with open_socket(service) as made:
            send(made, 1, [VIEW])
            made.send(frame)
            send(made, 3, [VIEW])
            assert receive(made)["ack"] == 1
            answer = receive(made)
            assert answer["error"]["status"] == status and answer["error"].get("field") == field
            assert closing(made) == code
        wait_until(lambda: service.context.row_sockets.connections == 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_frame_is_reported_row_by_row(service: Live, packed: bool) -> None:
    service.register("v")
    rows: list[Any] = [{**VIEW, "id": f'{i}"}},{{"'} for i in range(6000)]
    for i in (0, 3000, 5999):
        rows[i] = rows[i] | {"type": "?"}
    frame = {"seq": 1, "kind": "events", "rows": rows}
    with open_socket(service) as made:
        made.send(msgspec.msgpack.encode(frame) if packed else json.dumps(frame))
        answer = receive(made)
        assert (answer["ack"], answer["accepted"], answer["rejected"]) == (1, 5997, 3)
        assert [refused["index"] for refused in answer["rejections"]] == [0, 3000, 5999]
        if not packed:
            for odd in ({**frame, "more": 1}, {**frame, "rows": {"rows": rows}}, {**frame, "kind": "likes"}):
                with open_socket(service) as other:
                    other.send(json.dumps(odd))
                    assert receive(other)["error"]["status"] == 422 and closing(other) == 1008


def test_backpressure_slows_down_a_fast_client(empty_redis: str) -> None:
    with live(empty_redis, stream_window=3) as service:
        service.register("v")
        free, inside, peak = threading.Event(), 0, 0
        take = service.context.ingest.take

        async def slow(kind: Any, items: Any, client: bytes) -> Any:
            nonlocal inside, peak
            inside += 1
            peak = max(peak, inside)
            while not free.is_set():
                await asyncio.sleep(0.01)
            inside -= 1
            return await take(kind, items)

        with patch.object(service.context.ingest, "take", slow), open_socket(service) as made:
            for seq in range(50):
                send(made, seq, [VIEW])
            wait_until(lambda: peak == 3)
            time.sleep(0.2)
            assert (peak, inside) == (3, 3)
            with pytest.raises(TimeoutError):
                made.recv(0.1)
            free.set()
            assert [receive(made)["ack"] for _ in range(50)] == list(range(50))
        assert peak == 3
        assert service.http.get("/videos/v").json()["counts"] == {"view": 50}


def test_a_fault_closes_the_connection_and_shows_no_internals(service: Live) -> None:
    async def fail(kind: Any, items: Any) -> Any:
        raise RuntimeError("secret")

    with patch.object(service.context.ingest, "take", fail), open_socket(service) as made:
        send(made, 1, [VIEW])
        answer = receive(made)
        assert answer["seq"] == 1 and answer["error"]["status"] == 500 and "secret" not in json.dumps(answer)
        assert closing(made) == 1011


def test_nothing_is_lost_while_the_store_is_away(server: EmbeddedServer) -> None:
    with live(server.url) as service:
        service.register("v")
        with open_socket(service) as made:
            send(made, 1, [{**VIEW, "id": "a"}])
            assert receive(made)["ack"] == 1
            server.stop()
            for seq in (2, 3):
                send(made, seq, [{**VIEW, "id": f"b{seq}"}])
            for seq in (2, 3):
                answer = receive(made)
                assert (answer["nack"], answer["retryable"]) == (seq, True) and answer["retry_after_s"] >= 1
            server.start()
            wait_until(lambda: service.http.get("/health/ready").status_code == 200)
            for seq in (1, 2, 3):
                send(made, seq, [{**VIEW, "id": "a" if seq == 1 else f"b{seq}"}])
            assert [
                (a["ack"], a["accepted"], a["duplicate"]) for a in (receive(made), receive(made), receive(made))
            ] == [
                (1, 0, 1),
                (2, 1, 0),
                (3, 1, 0),
            ]
        assert service.http.get("/videos/v").json()["counts"] == {"view": 3}


def test_a_key_is_required(empty_redis: str) -> None:
    hashed = tuple(f"{scope}:{hashlib.sha256(scope.encode()).hexdigest()}" for scope in ("ingest", "predict", "admin"))
    with live(empty_redis, api_keys=hashed) as service:
        for options, status in (
            ({}, 401),
            ({"additional_headers": {"x-api-key": "wrong"}}, 401),
            ({"path": "/events/stream?api_key=wrong"}, 401),
            ({"additional_headers": {"authorization": "Bearer predict"}}, 403),
            ({"path": "/events/stream?api_key=predict"}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused, open_socket(service, **options):
                pass
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body)["status"] == status
        for options in (
            {"additional_headers": {"x-api-key": "ingest"}},
            {"additional_headers": {"authorization": "Bearer admin"}},
            {"path": "/events/stream?api_key=ingest"},
        ):
            with open_socket(service, **options) as made:
                send(made, 1, [])
                assert receive(made)["ack"] == 1


def test_a_key_in_the_query_is_not_logged(empty_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    with live(empty_redis, api_keys=(f"ingest:{hashlib.sha256(b'hush').hexdigest()}",)) as service:
        monkeypatch.setattr(logger, "level", logging.INFO)
        logger._cache.clear()  # type: ignore[attr-defined]
        logger.addHandler(handler)
        with open_socket(service, path="/events/stream?api_key=hush&x=1"):
            pass
        with pytest.raises(InvalidStatus), open_socket(service, path="/events/stream?api_key=hushhush"):
            pass
        logger.removeHandler(handler)
    handshakes = [line for line in lines if "/events/stream" in line]
    assert len(handshakes) == 2 and not any("hush" in line for line in lines)


def test_connections_are_limited(empty_redis: str) -> None:
    with live(empty_redis, stream_producers=1) as service:
        with open_socket(service) as made:
            send(made, 1, [])
            assert receive(made)["ack"] == 1
            with pytest.raises(InvalidStatus) as refused, open_socket(service):
                pass
            assert refused.value.response.status_code == 503 and refused.value.response.headers["retry-after"]
        wait_until(lambda: service.context.row_sockets.connections == 0)
        with open_socket(service):
            pass


def test_a_stop_answers_the_frames_that_were_read(tmp_path: Path, fake_process: Callable[..., Process]) -> None:
    process = fake_process(tmp_path / "data")
    httpx.put(f"{process.url}/videos/v", json={"published_at": T0})
    stopped = threading.Thread(target=process.stop)
    with socket(process.url) as made:
        send(made, 0, [VIEW])
        assert receive(made)["accepted"] == 1
        stopped.start()
        acks, seq = 1, 1
        try:
            while True:
                send(made, seq, [{**VIEW, "id": str(seq)}])
                acks += receive(made)["accepted"]
                seq += 1
        except ConnectionClosed:
            pass
        assert made.close_code == 1012
        stopped.join(20)
    again = fake_process(tmp_path / "data")
    assert httpx.get(f"{again.url}/videos/v").json()["counts"] == {"view": acks}
