"""The replay against a stand-in service: order, ids, batches, retries, rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from index_builder.replay.client import Client, ServiceError
from index_builder.replay.replay import Replay
from model.engagement.attributes import attributes_of
from model.engagement.signals import SignalRows
from model.engagement.video import Video

SECOND = 1_000_000


def account(*rejections: dict[str, Any], accepted: int = 0, duplicate: int = 0) -> dict[str, Any]:
    return {
        "accepted": accepted,
        "duplicate": duplicate,
        "parked": 0,
        "rejected": len(rejections),
        "rejections": list(rejections),
    }


class Service:
    """Records what it receives, drops rows with known ids, and fails when the test wants it to."""

    def __init__(self, *failures: Callable[[httpx.Request], httpx.Response]) -> None:
        self.videos: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.batches: list[tuple[str, int]] = []
        self._ids: set[str] = set()
        self._failures = list(failures)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self._failures:
            return self._failures.pop(0)(request)
        if request.method == "PUT":
            self.videos[request.url.path.removeprefix("/videos/")] = json.loads(request.content)
            return httpx.Response(200, json={})
        assert request.headers["content-type"] == "application/x-ndjson"
        rows = [json.loads(line) for line in request.content.splitlines()]
        assert all(row["video_id"] in self.videos for row in rows), "registered before its first row"
        new = [row for row in rows if row["id"] not in self._ids]
        self._ids |= {row["id"] for row in new}
        self.rows += new
        self.batches.append((request.url.path, len(rows)))
        return httpx.Response(200, json=account(accepted=len(new), duplicate=len(rows) - len(new)))

    def client(self, **options: Any) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self), **options)


def times(*seconds: float) -> pa.Array:
    return pa.array([round(s * SECOND) for s in seconds], pa.timestamp("us", tz="UTC"))


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    videos = {
        "video_id": ["a", "b/ü"],
        "published_at": times(100, 200),
        "title": ["A", None],
        "duration_s": [9.5, None],
    }
    events = {
        "video_id": ["b/ü", "a", "a", "a", "a"],
        "time": times(210, 150.000001, 120, 120, 120),
        "type": ["view", "view", "like", "view", "view"],
        "count": [4, 1, 1, 1, 1],
        "reach": [0, 7, 0, 0, 0],
    }
    counters = {
        "video_id": ["a", "a", "a"],
        "time": times(130, 205, 205),
        "shares": [None, 3, 2],
        "comments": [1, 2, 2],
    }
    for name, columns in {"videos": videos, "events": events, "counters": counters}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return load_dataset(tmp_path)


def test_rows_go_out_in_time_order_after_their_videos(data: DataSet) -> None:
    service = Service()
    with service.client() as client:
        counts = Replay(data, client).play()
    assert service.videos == {
        "a": {"published_at": "1970-01-01T00:01:40Z", "title": "A", "duration_s": 9.5},
        "b/ü": {"published_at": "1970-01-01T00:03:20Z"},
    }
    sent = sorted(service.rows, key=lambda row: row["time"])
    ids = [row.pop("id") for row in sent]
    assert len(set(ids)) == len(ids) == 7
    assert sent == [
        {"video_id": "a", "time": "1970-01-01T00:02:00.000000Z", "type": "like", "count": 1},
        {"video_id": "a", "time": "1970-01-01T00:02:00.000000Z", "type": "view", "count": 1},
        {"video_id": "a", "time": "1970-01-01T00:02:00.000000Z", "type": "view", "count": 1},
        {"video_id": "a", "time": "1970-01-01T00:02:10.000000Z", "comments": 1},
        {"video_id": "a", "time": "1970-01-01T00:02:30.000001Z", "type": "view", "count": 1, "reach": 7},
        {"video_id": "a", "time": "1970-01-01T00:03:25.000000Z", "comments": 2, "shares": 3},
        {"video_id": "b/ü", "time": "1970-01-01T00:03:30.000000Z", "type": "view", "count": 4},
    ]
    assert (counts.videos, counts.sent, counts.accepted, counts.duplicate, counts.rejected) == (2, 7, 7, 0, 0)


def test_attributes_and_signals_are_sent(data: DataSet) -> None:
    ranks = SignalRows(np.array([0, 2, 2]), np.array([130, 140], np.int64) * SECOND, np.array([3.0, 2.5]))
    heat = SignalRows(np.array([0, 1, 2]), np.array([130, 500], np.int64) * SECOND, np.array([-1.0, 9.0]))
    videos = [replace(data.videos[0], attributes=attributes_of({"hd": True, "regions": ["at"]})), data.videos[1]]
    service = Service()
    with service.client() as client:
        Replay(replace(data, videos=videos, signals={"rank": ranks, "heat": heat}), client).play()
    assert service.videos["a"]["attributes"] == {"hd": True, "regions": ["at"]}
    sent = {(row["video_id"], row["time"][14:19]): row for row in service.rows if "type" not in row}
    assert {at: (row.get("comments"), row.get("signals")) for at, row in sent.items()} == {
        ("a", "02:10"): (1, {"rank": 3.0, "heat": -1.0}),
        ("a", "02:20"): (None, {"rank": 2.5}),
        ("a", "03:25"): (2, None),
        ("b/ü", "08:20"): (None, {"heat": 9.0}),
    }


def test_a_repeated_replay_changes_nothing_at_any_batch_size(data: DataSet) -> None:
    service = Service()
    with service.client() as client:
        Replay(data, client, batch_rows=2).play()
        first = len(service.rows)
        again = Replay(data, client, batch_rows=3, from_us=120 * SECOND)
        parts = [again.play(130 * SECOND), again.play(130 * SECOND), again.play()]
    assert len(service.rows) == first == 7
    assert [(part.sent, part.duplicate) for part in parts] == [(4, 4), (0, 0), (3, 3)]


def test_play_stops_at_a_time_and_continues(data: DataSet) -> None:
    service = Service()
    with service.client() as client:
        stream = Replay(data, client, videos=np.array([True, False]))
        assert stream.remaining(149 * SECOND) == 4
        stream.play(149 * SECOND)
        assert set(service.videos) == {"a"}
        assert max(row["time"] for row in service.rows) == "1970-01-01T00:02:10.000000Z"
        stream.play()
    assert len(service.rows) == 6
    assert set(service.videos) == {"a"}


def test_busy_and_broken_calls_are_retried(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    service = Service(
        lambda request: httpx.Response(503, headers={"Retry-After": "3"}),
        lambda request: httpx.Response(429, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        broken,
    )
    with service.client() as client:
        client.register(data.videos[0])
    assert pauses == [3.0, 0.2, 0.4]
    assert list(service.videos) == ["a"]


def test_a_refused_or_hopeless_call_is_an_error(data: DataSet) -> None:
    problem = {"title": "Conflict", "detail": "published_at is fixed"}
    service = Service(lambda request: httpx.Response(409, json=problem))
    with service.client() as client, pytest.raises(ServiceError, match="409 Conflict: published_at is fixed"):
        client.register(data.videos[0])
    service = Service(*[lambda request: httpx.Response(503)] * 9)
    with service.client(patience_s=0.15) as client, pytest.raises(ServiceError, match=r"given up after 0\.15 s: 503"):
        client.register(data.videos[0])
    with Client("nowhere") as client, pytest.raises(ServiceError, match="'nowhere' cannot be called"):
        client.register(data.videos[0])


def test_rejected_rows_are_counted_with_an_example(data: DataSet) -> None:
    refusal = {"index": 1, "reason": "invalid", "field": "type", "value": "like", "allowed": "view"}
    service = Service()
    with service.client() as client:
        stream = Replay(data, client)
        stream.play(110 * SECOND)
        service._failures.append(lambda request: httpx.Response(200, json=account(refusal, accepted=2)))
        some = stream.play(120 * SECOND)
        none = {"title": "Value not allowed", "detail": "...", **account(refusal | {"index": 0})}
        service._failures.append(lambda request: httpx.Response(422, json=none))
        every = stream.play(130 * SECOND)
        stream.play(200 * SECOND)
        service._failures.append(lambda request: httpx.Response(422, json={"title": "Other", "detail": "..."}))
        with pytest.raises(ServiceError, match="422 Other"):
            stream.play()
    assert (some.sent, some.accepted, some.rejected) == (3, 2, 1)
    assert "'allowed': 'view'" in str(some)
    assert (every.sent, every.accepted, every.rejected) == (1, 0, 1)


def test_a_refused_video_is_reported_and_the_replay_continues(data: DataSet) -> None:
    problem = {"title": "Value not allowed", "detail": "published_at: is in the future"}
    service = Service(lambda request: httpx.Response(422, json=problem))
    with service.client() as client:
        counts = Replay(data, client, videos=np.array([True, False])).play(110 * SECOND)
        assert (counts.videos, counts.refused, counts.sent) == (0, 1, 0)
        assert "1 videos refused and their rows left out, first: 'a': " in str(counts)
        assert "422 Value not allowed: published_at: is in the future" in str(counts)
        stream = Replay(data, client)
        service._failures.append(lambda request: httpx.Response(409, json=problem))
        rest = stream.play()
    assert (rest.videos, rest.refused) == (1, 1)
    assert len({row["video_id"] for row in service.rows}) == 1, "a refused video's rows are not sent"
    assert rest.sent == len(service.rows) == stream.remaining() + rest.sent


def test_a_refused_api_key_ends_the_replay(data: DataSet) -> None:
    service = Service(lambda request: httpx.Response(403, json={"title": "Forbidden", "detail": "scope"}))
    with service.client() as client, pytest.raises(ServiceError, match="403 Forbidden"):
        Replay(data, client).play()


@pytest.mark.parametrize("video_id", [".", "..", "a/..", "%2E", "ü ?#"])
def test_any_video_id_reaches_the_service_unchanged(video_id: str) -> None:
    service = Service()
    with service.client() as client:
        client.register(Video(video_id, 0))
    assert list(service.videos) == [video_id]


def test_rows_are_sent_at_the_given_rate(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("index_builder.replay.replay.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("index_builder.replay.replay.time.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    service = Service()
    with service.client() as client:
        Replay(data, client, rate=2.0).play()
    assert {n for _, n in service.batches} == {1}
    assert clock[0] == pytest.approx(3.0), "the seventh row goes out after six half seconds"
