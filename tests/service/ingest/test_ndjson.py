"""NDJSON of any length is stored batch by batch while it arrives."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

ROWS = 50
"""Limit of the rows in a batch of these services."""
NDJSON = {"content-type": "application/x-ndjson"}


def line(i: int, **change: Any) -> bytes:
    return json.dumps({"video_id": "v", "time": T0 + i, "type": "view", "id": f"id{i}", **change}).encode() + b"\n"


@pytest.fixture
def service(empty_redis: str) -> Iterator[Live]:
    with live(
        empty_redis, max_batch_rows=ROWS, max_body_bytes=2048, max_line_bytes=1024, body_deadline_ms=500
    ) as running:
        running.register("v")
        yield running


def views(service: Live) -> int:
    return service.http.get("/videos/v").json()["counts"].get("view", 0)


def _views_are(service: Live, count: int) -> bool:
    return views(service) == count


def post(service: Live, content: Any, **headers: str) -> httpx.Response:
    return service.http.post("/events", content=content, headers={**NDJSON, **headers})


@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_of_any_length_is_stored(service: Live, packed: bool) -> None:
    n = 20 * ROWS + 7
    body = b"\n \n".join(line(i) for i in range(n)).rstrip()
    content = gzip.compress(body[:999]) + gzip.compress(body[999:]) if packed else body
    headers = {"content-encoding": "gzip"} if packed else {}
    response = post(service, content, **headers).json()
    assert (response["accepted"], response["rejected"]) == (n, 0)
    assert (
        post(service, (content[i : i + 1000] for i in range(0, len(content), 1000)), **headers).json()["duplicate"] == n
    )
    assert views(service) == n


def test_rejections_have_their_position_in_the_whole_body(service: Live) -> None:
    lines = [line(i) for i in range(3 * ROWS)]
    lines[70], lines[120], lines[121] = b"{broken\n", line(120, type="clap"), line(121, time=T0 - 1)
    response = post(service, b"".join(lines)).json()
    assert (response["accepted"], response["rejected"]) == (3 * ROWS - 3, 3)
    assert [(r["index"], r["field"]) for r in response["rejections"]] == [(70, "line"), (120, "type"), (121, "time")]


def test_many_rejections_are_counted_and_some_are_listed(service: Live) -> None:
    response = post(service, b"".join(line(i, count=0) for i in range(1203)) + line(1)).json()
    assert (response["accepted"], response["rejected"], len(response["rejections"])) == (1, 1203, 1000)
    none = post(service, line(1, count=0) * 1203)
    assert none.status_code == 422 and none.json()["rejected"] == 1203


BROKEN = {
    "a line too long": (b"".join(map(line, range(2 * ROWS))) + b"x" * 2000, {}, 413, "line"),
    "gzip that ends early": (
        gzip.compress(b"".join(map(line, range(2 * ROWS))))[:-6],
        {"content-encoding": "gzip"},
        400,
        "body",
    ),
    "gzip that breaks": (
        gzip.compress(b"".join(map(line, range(2 * ROWS)))) + b"nonsense",
        {"content-encoding": "gzip"},
        400,
        "body",
    ),
}


@pytest.mark.parametrize(("content", "headers", "status", "field"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_stream_reports_the_rows_that_were_stored(
    service: Live, content: bytes, headers: dict[str, str], status: int, field: str
) -> None:
    pieces = (content[i : i + 500] for i in range(0, len(content), 500))
    answer = post(service, pieces, **headers)
    problem = answer.json()
    assert answer.status_code == status and problem["field"] == field, problem
    assert problem["rows"] == problem["accepted"] == views(service)
    # Whole batches before the broken part.
    assert problem["accepted"] in (0, ROWS, 2 * ROWS)


def test_a_gzip_bomb_takes_no_memory(service: Live) -> None:
    bomb = gzip.compress(b"\n" * 20_000_000) + gzip.compress(line(1))
    assert post(service, bomb, **{"content-encoding": "gzip"}).json()["accepted"] == 1
    assert post(service, gzip.compress(b"x" * 20_000_000), **{"content-encoding": "gzip"}).status_code == 413


def connect(service: Live) -> socket.socket:
    connection = socket.create_connection((service.http.base_url.host, service.http.base_url.port), timeout=10)
    head = (
        "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))


def test_a_slow_stream_is_accepted_and_a_silent_one_is_refused(service: Live) -> None:
    with connect(service) as connection:
        for i in range(6):
            send(connection, b"".join(line(ROWS * i + j) for j in range(ROWS)))
            wait_until(partial(_views_are, service, ROWS * (i + 1)))
            time.sleep(0.2)
        send(connection, line(9999)[:20])
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"accepted":300' in answer


def test_a_client_that_leaves_leaves_whole_batches(service: Live) -> None:
    with connect(service) as connection:
        send(connection, b"".join(line(i) for i in range(ROWS + 20)))
        wait_until(lambda: views(service) == ROWS)
    assert service.http.get("/health/live").status_code == 200
    assert views(service) == ROWS


def test_rows_of_concurrent_requests_count_once(empty_redis: str) -> None:
    """Many clients send the same ids at the same time: each row counts once, and each client gets its own outcome."""
    with live(empty_redis) as service:
        for video in range(20):
            service.register(f"v{video}")
        rows = [{"video_id": f"v{i % 20}", "time": T0 + i % 100, "type": "view", "id": f"e{i}"} for i in range(400)]
        answers: list[dict[str, Any]] = []

        def client(first: int) -> None:
            for start in range(0, 400, 100):
                mine = [*rows[(first + start) % 400 :][:100], {"video_id": "v0", "time": T0, "type": "clap"}]
                answers.append(service.post("/events", mine))

        threads = [threading.Thread(target=client, args=(100 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 32
        assert all(a["accepted"] + a["duplicate"] == 100 and a["rejections"][0]["index"] == 100 for a in answers)
        assert sum(a["accepted"] for a in answers) == 400
        counts = [service.http.get(f"/videos/v{i}").json()["counts"]["view"] for i in range(20)]
        assert counts == [20] * 20
