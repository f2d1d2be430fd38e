"""POST /predict with a list: items do not affect each other."""

from __future__ import annotations

import hashlib
from typing import Any
from unittest.mock import patch

import pytest

from tests.service.running import T0, Live, live


def body(video_id: str, **change: Any) -> dict[str, Any]:
    return {"video": {"video_id": video_id, "published_at": T0}, "at": T0 + 900, "horizons_s": [3600], **change}


def test_each_item_has_its_result_at_its_index(service: Live) -> None:
    event = {"time": T0 + 5, "type": "view"}
    items = [
        body("a", events=[event]),
        body("b", events=[event, {**event, "type": "clap"}]),
        body("c"),
        7,
        {"video": {"video_id": "unknown"}},
        body("a", events=[event, event]),
        {"video": {"video_id": "a"}, "at": T0 + 900, "horizons_s": [3600]},
        body("d", horizons_s=[-1]),
        body("a", video={"video_id": "a", "published_at": T0 + 1}),
    ]
    answer = service.http.post("/predict", json=items)
    assert answer.status_code == 200
    told = answer.json()
    assert [item["status"] for item in told] == [200, 422, 200, 422, 422, 200, 200, 422, 409]
    assert [item.get("field") for item in told if item["status"] != 200] == [
        "events[1].type",
        "body",
        "published_at",
        "horizons_s",
        "published_at",
    ]
    assert [item["counts"] for item in told if item["status"] == 200] == [
        {"view": 1},
        {},
        {"view": 3},
        {"view": 3},
    ]
    assert told[5]["rows"]["accepted"] == 2 and told[5]["video_id"] == "a"
    single = service.http.post("/predict", json=items[6]).json()
    assert {**single, "status": 200} == told[6]
    assert service.http.get("/videos/b").status_code == 404 and service.http.get("/videos/d").status_code == 404


def test_a_long_list(service: Live) -> None:
    told = service.http.post("/predict", json=[body(f"v{i}") for i in range(256)]).json()
    assert [item["video_id"] for item in told] == [f"v{i}" for i in range(256)]
    assert {item["status"] for item in told} == {200}


@pytest.mark.parametrize("length", [0, 257])
def test_too_many_or_none(service: Live, length: int) -> None:
    answer = service.http.post("/predict", json=[body("v")] * length)
    assert answer.status_code == 422 and answer.json()["field"] == "body"
    assert service.http.get("/videos/v").status_code == 404


def test_failure_affects_only_its_item(service: Live) -> None:
    engine = service.context.engine
    plain = engine.forecast

    async def forecast(video_id: str, *rest: Any) -> Any:
        if video_id == "bad":
            raise RuntimeError("secret")
        return await plain(video_id, *rest)

    with patch.object(engine, "forecast", forecast):
        answer = service.http.post("/predict", json=[body("good"), body("bad"), body("fine")])
    assert [item["status"] for item in answer.json()] == [200, 500, 200] and "secret" not in answer.text


def test_scopes_are_checked_for_each_item(empty_redis: str) -> None:
    keys = tuple(f"{scope}:{hashlib.sha256(scope.encode()).hexdigest()}" for scope in ("predict", "admin"))
    with live(empty_redis, api_keys=keys) as service:
        assert (
            service.http.post("/predict", json=[body("v")], headers={"x-api-key": "admin"}).json()[0]["status"] == 200
        )
        items = [body("v"), {"video": {"video_id": "v"}}]
        told = service.http.post("/predict", json=items, headers={"x-api-key": "predict"}).json()
        assert [item["status"] for item in told] == [403, 200]
