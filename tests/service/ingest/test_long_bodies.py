"""Long bodies are decoded slice by slice, with the same outcome as when they are decoded at once."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ingest.handler import SLICE_BYTES, SLICE_ROWS
from service.ingest.json_slices import is_cut, row_end, rows_within
from service.ingest.outcome_json import LISTED_AT_ONCE
from service.problems import Malformed
from service.routes.rows import LISTED
from tests.service.running import T0, Live, live, wait_until

JSON, LINES = {"content-type": "application/json"}, {"content-type": "application/x-ndjson"}
TRICKY = ['},{"', '"},{', "\\", '\\"},{\\"', "]", "}]", '{"rows":[', " } , { ", "ü},{"]


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"video_id": "a", "time": T0 + 5 + i % 1000, "type": "view", **more}


def cuts(body: bytes, step: int) -> Iterator[bytes]:
    """The slices of a body."""
    start, end = rows_within(body)
    while start < end:
        stop, following = row_end(body, start, start + step, end)
        while is_cut(b"[" + body[start:stop] + b"]"):
            assert stop < end
            stop, following = row_end(body, start, stop + step, end)
        yield b"[" + body[start:stop] + b"]"
        start = following


VALUES = st.one_of(
    st.integers(), st.text(), st.sampled_from(TRICKY), st.lists(st.dictionaries(st.text(), st.integers()), max_size=3)
)


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["video_id", "id", *TRICKY]), VALUES, max_size=4), max_size=12),
    step=st.integers(1, 60),
    named=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
)
def test_slices_hold_exactly_the_rows(rows: list[dict[str, Any]], step: int, named: bool, indent: int | None) -> None:
    for ascii_only in (True, False):
        value: Any = {"rows": rows} if named else rows
        body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
        assert [one for piece in cuts(body, step) for one in json.loads(piece)] == json.loads(body)[
            "rows" if named else slice(None)
        ]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'"[]"', b"[1", b'{"rows":[]', b'{"rows":[],"more":1}', b'{"more":[]}', b"]", b"[}"]
)
def test_a_body_without_rows_is_refused_at_once(body: bytes) -> None:
    with pytest.raises(Malformed):
        rows_within(body)


@pytest.mark.parametrize("named", [False, True])
def test_a_long_body_is_reported_row_by_row(service: Live, named: bool) -> None:
    service.register("a")
    rows: list[Any] = [row(i, id=f"{i}{TRICKY[i % len(TRICKY)]}") for i in range(4000)]
    bad = [0, 7, SLICE_ROWS, 2500, 3999]
    for index in bad:
        rows[index] = rows[index] | {"type": "},{"}
    for index in range(2000, 2100):
        rows[index] = {"nested": [{"a": 1}, {"b": index}]}
    rows[9] = {"nested": [{"a": 1}, {"b": "},{"}]}
    rows[11] = 5
    body = json.dumps({"rows": rows} if named else rows).encode()
    assert len(body) > 4 * SLICE_BYTES
    response = service.http.post("/events", content=body, headers=JSON).json()
    assert (response["accepted"], response["rejected"]) == (3893, 107)
    assert [refused["index"] for refused in response["rejections"]] == sorted([*bad, 9, 11, *range(2000, 2100)])
    again = service.http.post("/events", content=body, headers=JSON).json()
    assert (again["accepted"], again["duplicate"]) == (0, 3893)


def test_a_long_body_that_is_broken_stores_nothing(service: Live) -> None:
    service.register("a")
    good = json.dumps([row(i) for i in range(4000)]).encode()
    middle = good.index(b"},", len(good) // 2)
    for broken in (good[:-2], good[:-1], good[:-1] + b",]", good[:middle] + good[middle + 1 :], good + b" x"):
        answer = service.http.post("/events", content=broken, headers=JSON)
        assert answer.status_code == 400, answer.text[:200]
    assert service.http.get("/videos/a").json()["bins"] == 0


def test_a_row_above_the_line_limit_is_refused(service: Live) -> None:
    for text in ("},{" * 40_000, '\\"},{' * 30_000, "x" * 300_000):
        answer = service.http.post("/events", json=[{"x": text}, {"y": text}])
        assert answer.status_code == 413 and "row" in answer.json()["detail"]
    assert service.http.post("/events", content=b"[" + b" " * 500_000 + b"]", headers=JSON).json()["accepted"] == 0


@pytest.mark.parametrize("lines", [False, True])
def test_rows_keep_their_position_and_so_their_id(service: Live, lines: bool) -> None:
    """With an Idempotency-Key, a row is recognized by its position, wherever a slice or a batch starts."""
    service.register("a")
    rows = [row(i, type="?" if i % 7 == 3 else "view") for i in range(3 * SLICE_ROWS)]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    headers = (LINES if lines else JSON) | {"Idempotency-Key": "k"}
    good = sum(one["type"] == "view" for one in rows)
    assert service.http.post("/events", content=text, headers=headers).json()["accepted"] == good
    # Now the other rows are valid, too: they count, and none counts twice.
    fixed = text.replace("?", "view")
    response = service.http.post("/events", content=fixed, headers=headers).json()
    assert (response["accepted"], response["duplicate"]) == (len(rows) - good, good)


def test_a_long_list_of_rejections_is_complete(service: Live) -> None:
    rows = [row(i, type="?") for i in range(3 * LISTED_AT_ONCE + 5)]
    response = service.http.post("/events", json=rows).json()
    assert [refused["index"] for refused in response["rejections"]] == list(range(len(rows)))
    assert response["rejected"] == len(rows) and set(response["rejections"][-1]) == set(response["rejections"][0])
    assert response["rejections"][-1]["allowed"] and response["rejections"][-1]["field"] == "type"


@pytest.mark.parametrize("known", [False, True])
def test_a_stream_counts_rejections_that_it_does_not_list(service: Live, known: bool) -> None:
    """Rows are refused while parsing, or by the store: a video fed by counters takes no events of the same type."""
    service.register("a")
    service.post("/counters", [{"video_id": "a", "time": T0 + 5, "views": 3}])
    bad = row(0) if known else row(0, type="?")
    text = (json.dumps(bad) + "\n") * (LISTED + 3000)
    response = service.http.post("/events", content=text, headers=LINES)
    assert response.status_code == 422
    assert response.json()["rejected"] == LISTED + 3000 and len(response.json()["rejections"]) == LISTED
    assert [refused["index"] for refused in response.json()["rejections"]] == list(range(LISTED))


def test_values_are_counted_while_they_arrive(service: Live) -> None:
    """No more of a body is read than is needed to refuse it."""
    url = httpx.URL(service.address)
    head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=10) as made:
        made.sendall(head + b"[" + b"0," * 400_000)
        assert made.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("packed", [False, True])
def test_no_work_is_done_for_a_client_that_has_left(empty_redis: str, packed: bool) -> None:
    text = (json.dumps(row(0)) + "\n").encode() * 400_000
    body = gzip.compress(text, 1) if packed else text
    head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Encoding: gzip\r\n\r\n" if packed else "\r\n"

    def taken(service: Live) -> float:
        found = [line for line in service.http.get("/metrics").text.splitlines() if "m3tr_ingest_rows_total{" in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    with live(empty_redis) as service:
        service.register("a")
        url = httpx.URL(service.address)
        with socket.create_connection((url.host, url.port or 80), timeout=10) as made:
            made.sendall(head.encode() + body[: 2**20])
            wait_until(lambda: taken(service) > 0)
        time.sleep(0.3)
        at_the_end = taken(service)
        time.sleep(0.5)
        assert taken(service) == at_the_end < 400_000


def test_requests_wait_until_the_responses_before_them_are_read(empty_redis: str) -> None:
    ask = b"GET /videos/a HTTP/1.1\r\nHost: x\r\n\r\n"

    def answered(service: Live) -> float:
        text = service.http.get("/metrics").text
        name = 'm3tr_requests_total{method="GET",route="/videos/{video_id}",status="200"} '
        return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)

    with live(empty_redis) as service:
        service.register("a", title="x" * 4000, description="y" * 40_000)
        url = httpx.URL(service.address)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(20)
            slow.connect((url.host, url.port or 80))
            slow.sendall(ask * 400)
            time.sleep(0.5)
            begun = answered(service)
            time.sleep(0.3)
            assert answered(service) == begun < 300
            # A client that reads gets all responses.
            got = 0
            while got < 400 * 40_000:
                part = slow.recv(2**20)
                assert part
                got += len(part)
            wait_until(lambda: answered(service) == 400)
