"""Signals in rows of counters over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.running import T0, Live


def row(**fields: Any) -> dict[str, Any]:
    return {"video_id": "v", "time": T0 + 100, **fields}


def test_signals_are_stored_and_shown(service: Live) -> None:
    service.register("v")
    rows = [
        row(views=5, signals={"rank": 7, "heat": 1.5}),
        row(time=T0 + 4000, signals={"rank": 3}),
        row(time=T0 + 4000.5, views=9, signals={"heat": None}),
    ]
    assert service.post("/counters", rows)["accepted"] == 3
    stored = service.http.get("/videos/v").json()
    assert stored["signals"] == {"heat": 1.5, "rank": 3.0} and stored["counts"] == {"view": 9}
    body = {"video": {"video_id": "v"}, "counters": [row(time=T0 + 5000, signals={"rank": 1})], "at": T0 + 6000}
    assert service.http.post("/predict", json=body).status_code == 200
    assert service.http.get("/videos/v").json()["signals"]["rank"] == 1


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"signals": 3}, "signals", "an object with at most 16 signals"),
        ({"signals": {f"s{i}": i for i in range(17)}}, "signals", "an object with at most 16 signals"),
        ({"signals": {"rank": "3"}}, "signals.rank", "a number from -1e+15 to 1e+15"),
        ({"signals": {"rank": True}}, "signals.rank", "a number from -1e+15 to 1e+15"),
        ({"signals": {"rank": 1e16}}, "signals.rank", "a number from -1e+15 to 1e+15"),
        ({"signals": {"views": 3}}, "signals", "names of 1 to 128 characters other than views, likes"),
        ({"signals": {"": 3}}, "signals", "names of 1 to 128 characters"),
        ({"signals": {"rank": None}}, "counters", "at least one of views, likes, comments, shares, or signals"),
        ({}, "counters", "at least one of views, likes, comments, shares, or signals"),
    ],
)
def test_limits(service: Live, fields: dict[str, Any], field: str, allowed: str) -> None:
    service.register("v")
    good = row(views=1)
    told = service.post("/counters", [good, row(**fields)])
    assert (told["accepted"], told["rejected"]) == (1, 1)
    refused = told["rejections"][0]
    assert (refused["index"], refused["field"]) == (1, field) and allowed in refused["allowed"]


def test_an_event_has_no_signals(service: Live) -> None:
    service.register("v")
    told = service.post("/events", [row(type="view"), row(type="view", signals={"rank": 1})])
    assert told["rejections"][0]["field"] == "signals"
