"""Rows of unregistered videos: each key has a share of the limit."""

from __future__ import annotations

import hashlib

from service.ingest.parking import Parking
from tests.service.running import T0, Live, live, wait_until

KEYS = tuple(f"admin:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("one", "two"))


def park(service: Live, key: str, *videos: str) -> tuple[int, int]:
    rows = [{"video_id": video, "time": T0 + 5, "type": "view"} for video in videos]
    response = service.http.post("/events", json=rows, headers={"x-api-key": key}).json()
    return response["parked"], response["rejected"]


def test_each_client_has_a_share_of_parking() -> None:
    now = [0.0]
    parking = Parking(2, 10, lambda: now[0])
    assert parking.allows(b"a")
    parking.parked(b"a", ["v", "w"])
    assert not parking.allows(b"a") and parking.allows(b"b")
    parking.changed([("v", 1), ("other", 0)])
    assert parking.allows(b"a")
    parking.parked(b"a", ["x"])
    assert not parking.allows(b"a")
    now[0] = 10.5
    assert parking.allows(b"a")
    assert not Parking(0, 10).allows(b"a")


def test_invented_ids_of_one_key_do_not_use_up_another_keys_share(empty_redis: str) -> None:
    with live(empty_redis, api_keys=KEYS, park_videos=8) as service:
        for i in range(4):
            assert park(service, "one", f"one-{i}") == (1, 0)
        assert park(service, "one", "one-5") == (0, 1)
        # At the same time, another key's rows are parked for the same videos.
        assert park(service, "two", "two-1", "one-1") == (2, 0)
        service.http.headers["x-api-key"] = "one"
        service.register("one-0")
        wait_until(lambda: park(service, "one", "one-6") == (1, 0))


def test_without_keys_there_is_no_share(empty_redis: str) -> None:
    with live(empty_redis, park_videos=8) as service:
        assert park(service, "", *(f"v-{i}" for i in range(8))) == (8, 0)
