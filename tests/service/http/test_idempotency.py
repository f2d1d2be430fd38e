"""A repeated request counts once, and a 503 reports what is known about its rows."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from service.http.bodies import BATCH_LINES
from service.problems import Unavailable
from tests.service.running import T0, Live

VIEW = {"video_id": "v", "time": T0 + 5, "type": "view"}


def send(
    service: Live, rows: list[Any], key: str | None = "one", lines: bool = False, status: int = 200
) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    if lines:
        body = "\n".join(map(json.dumps, rows)).encode()
        headers |= {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        answer = service.http.post("/events", content=gzip.compress(body), headers=headers)
    else:
        answer = service.http.post("/events", json=rows, headers=headers)
    assert answer.status_code == status, answer.text
    response: dict[str, Any] = answer.json()
    return response


def count(service: Live) -> int:
    total: int = service.http.get("/videos/v").json()["counts"].get("view", 0)
    return total


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_a_repeated_request_counts_once(service: Live, lines: bool, slow: bool) -> None:
    """``slow``: with a row that is refused, so that the row parser handles the batch."""
    service.register("v")
    bad: list[Any] = [{**VIEW, "type": "no such type"}] if slow else []
    rows = [VIEW, *bad, VIEW, {**VIEW, "id": "mine"}, VIEW]
    first, again = send(service, rows, lines=lines), send(service, rows, lines=lines)
    assert (first["accepted"], first["duplicate"]) == (4, 0)
    assert (again["accepted"], again["duplicate"], count(service)) == (0, 4, 4)
    # With another key, or without one, it is another request.
    assert send(service, rows, "two", lines=lines)["accepted"] == 3
    assert send(service, rows, None, lines=lines)["accepted"] == 3


def test_the_format_of_the_rows_does_not_matter(service: Live) -> None:
    service.register("v")
    send(service, [VIEW] * 7)
    assert send(service, [VIEW] * 7, lines=True)["duplicate"] == 7
    assert send(service, [VIEW] * 9)["accepted"] == 2


def test_parked_rows_count_once(service: Live) -> None:
    assert send(service, [VIEW, VIEW])["parked"] == 2
    assert send(service, [VIEW, VIEW])["duplicate"] == 2
    service.register("v")
    assert send(service, [VIEW, VIEW])["duplicate"] == 2 and count(service) == 2


def test_rows_of_repeated_predictions_count_once(service: Live) -> None:
    body = {"video": {"video_id": "v", "published_at": T0}, "events": [{"time": T0 + 5, "type": "view"}] * 3}
    for accepted in (3, 0):
        response = service.http.post("/predict", json=body, headers={"Idempotency-Key": "p"}).json()
        assert response["rows"]["accepted"] == accepted
    for accepted in (3, 0):
        both = service.http.post("/predict", json=[body, body], headers={"Idempotency-Key": "q"}).json()
        assert [one["rows"]["accepted"] for one in both] == [accepted, accepted]
    assert count(service) == 9


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "\u00e9"])
def test_an_invalid_key_is_refused(service: Live, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    answer = service.http.post("/events", json=[VIEW], headers=headers)
    assert answer.status_code == 422 and answer.json()["field"] == "Idempotency-Key"


def test_a_503_reports_how_many_rows_are_unknown(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    service.register("v")
    store, taken = service.context.store, 0
    ingest = store.ingest

    async def failing(batches: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 2:
            raise Unavailable("the event store does not answer")
        return await ingest(batches)

    monkeypatch.setattr(store, "ingest", failing)
    limit = BATCH_LINES
    response = send(service, [VIEW] * (limit + 3), lines=True, status=503)
    assert (response["rows"], response["accepted"], response["unknown"]) == (limit, limit, 3)
    assert send(service, [VIEW] * (limit + 3), lines=True) | {"rejections": []} == {
        "accepted": 3,
        "duplicate": limit,
        "parked": 0,
        "rejected": 0,
        "corrected": 0,
        "rejections": [],
    } | {key: value for key, value in response.items() if key == "ignored"}
    taken = 1
    assert send(service, [VIEW] * 5, "other", status=503)["unknown"] == 5


def test_a_503_counts_the_rows_that_were_stored(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several calls gets no reply: the rows of the others were stored, and the response counts them."""
    for name in ("v", "w"):
        service.register(name)
    store = service.context.store
    call = store._connection.call

    async def partly(name: str, calls: Any, **options: Any) -> Any:
        replies = await call(name, calls, **options)
        return [*replies[:-1], Unavailable("no answer")] if name == "apply" and len(replies) > 1 else replies

    monkeypatch.setattr(store._connection, "call", partly)
    rows = [{**VIEW, "video_id": name, "id": f"{i}"} for name in "vw" for i in range(600)]
    response = send(service, rows, status=503)
    assert (response["accepted"], response["unknown"]) == (600, 600)
    response = send(service, rows, lines=True, status=503)
    assert (response["rows"], response["accepted"], response["duplicate"], response["unknown"]) == (0, 0, 600, 600)
    monkeypatch.undo()
    assert send(service, rows)["duplicate"] == 1200
