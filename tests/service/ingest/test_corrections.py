"""A wrong count can be lowered by a request that names the count that it replaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.store.correction import Correction
from tests.service.running import T0, Live
from tests.service.store.test_store import REGISTRATION, counters, event, with_store

WRONG = 10**15


def count(service: Live, kind: str = "view") -> int:
    return service.http.get("/videos/v").json()["counts"][kind]


def correct(service: Live, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = service.http.post("/videos/v/corrections", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def readings(service: Live, *pairs: tuple[float, int]) -> None:
    service.post("/counters", [{"video_id": "v", "time": T0 + age, "views": views} for age, views in pairs])


def test_a_counter_is_lowered_and_then_rises_again(service: Live) -> None:
    service.register("v")
    readings(service, (60, 100), (600, WRONG), (1200, 300))
    before = service.http.get("/videos/v").json()["version"]
    assert count(service) == WRONG
    response = correct(service, counter="views", value=200, replaces=WRONG)
    assert response == {
        "video_id": "v",
        "type": "view",
        "replaced": WRONG,
        "total": 300,
        "version": response["version"],
    }
    assert response["version"] > before and count(service) == 300
    readings(service, (1300, 250))
    assert count(service) == 300
    readings(service, (1400, 350))
    assert count(service) == 350
    assert "m3tr_count_corrections_total" in service.http.get("/metrics").text
    assert service.http.get("/videos/v/forecast").json()["value_now"] == 350


def test_all_wrong_readings_from_a_time_on_are_lowered(service: Live) -> None:
    service.register("v")
    readings(service, (60, 100), (600, WRONG - 5), (1200, WRONG), (2400, WRONG - 1), (9000, 50))
    correct(service, counter="views", value=120, replaces=WRONG, **{"from": T0 + 500})
    assert count(service) == 120
    early = service.http.get(f"/videos/v/forecast?at={T0 + 300}").json()
    assert early["counts"] == {"view": 100}


def test_surplus_events_are_subtracted_from_the_largest_bins(service: Live) -> None:
    service.register("v")
    rows = [
        {"video_id": "v", "time": T0 + age, "type": "view", "count": n} for age, n in ((5, 3), (700, WRONG), (9000, 4))
    ]
    service.post("/events", rows)
    assert correct(service, type="view", value=10, replaces=WRONG + 7)["total"] == 10
    assert service.http.get(f"/videos/v/forecast?at={T0 + 100}").json()["counts"] == {"view": 3}
    assert service.http.get(f"/videos/v/forecast?at={T0 + 5000}").json()["counts"] == {"view": 6}
    service.post("/events", rows[:1])
    assert count(service) == 13
    # Down to zero, the open bin included; then counting continues.
    assert correct(service, type="view", value=0, replaces=13)["total"] == 0
    service.post("/events", [{"video_id": "v", "time": T0 + 700, "type": "view"}, {**rows[2], "time": T0 + 9001}])
    assert count(service) == 5


def test_a_correction_that_replaces_another_count_is_refused(service: Live) -> None:
    service.register("v")
    readings(service, (60, 100), (600, WRONG))
    response = correct(service, 409, counter="views", value=5, replaces=WRONG - 1)
    assert (response["field"], response["value"], response["allowed"]) == ("replaces", str(WRONG - 1), str(WRONG))
    assert correct(service, 409, counter="likes", value=5, replaces=9)["allowed"] == "0"
    late = correct(service, 409, counter="views", value=5, replaces=WRONG, **{"from": T0 + 90_000})
    assert late["field"] == "from"
    service.post("/events", [{"video_id": "v", "time": T0 + 5, "type": "share", "count": 9}])
    assert correct(service, 409, type="share", value=1, replaces=9, **{"from": T0 + 90})["field"] == "from"
    assert count(service) == WRONG and count(service, "share") == 9
    answer = service.http.post("/videos/unknown/corrections", json={"type": "view", "value": 1, "replaces": 2})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"counter": "views", "value": 7, "replaces": 7}, "value"),
        ({"counter": "views", "value": -1, "replaces": 7}, "value"),
        ({"counter": "views", "value": 1.5, "replaces": 7}, "value"),
        ({"counter": "views", "value": 1}, "replaces"),
        ({"counter": "claps", "value": 1, "replaces": 7}, "counter"),
        ({"type": "reach", "value": 1, "replaces": 7}, "type"),
        ({"type": "view", "counter": "views", "value": 1, "replaces": 7}, "type"),
        ({"value": 1, "replaces": 7}, "type"),
        ({"type": "view", "value": 1, "replaces": 7, "from": "yesterday"}, "from"),
        ({"type": "view", "value": 1, "replaces": 7, "form": 5}, "form"),
        ({"type": "view", "value": 1, "replaces": 2**60}, "replaces"),
    ],
)
def test_an_invalid_correction_is_named(service: Live, body: dict[str, Any], field: str) -> None:
    service.register("v")
    assert correct(service, 422, **body)["field"] == field


def test_bins_add_up_to_the_total_after_any_corrections(empty_redis: str) -> None:
    """A snapshot is refused where its bins do not add up to the total; the video is read after each step to check that."""
    chance = np.random.default_rng(5)

    async def work(store: Any) -> None:
        await store.register("v", REGISTRATION)
        for _ in range(150):
            age_s = float(chance.choice([1, 5, 70, 3000, 90_000, 9e6, 7e8])) * float(chance.uniform(1, 1.5))
            if chance.random() < 0.5:
                await store.apply({"v": [event(age_s, "share", int(chance.integers(1, 1000)))]})
            else:
                await store.apply({"v": [counters(age_s, view=int(chance.integers(0, 1000)))]})
            snapshot = await store.read("v")
            totals = snapshot.history.totals()
            kind = str(chance.choice(["share", "view"]))
            if totals.get(kind, 0) > 1 and chance.random() < 0.5:
                value = int(chance.integers(0, totals[kind]))
                corrected = await store.correct("v", Correction(kind, value, totals[kind]))
                after = await store.read("v")
                assert after.history.totals()[kind] == corrected.total < totals[kind] or kind == "view"
                assert corrected.total <= totals[kind] and after.version == corrected.version > snapshot.version
                assert kind == "view" or corrected.total == value
                assert after.newest_us == snapshot.newest_us

    with_store(empty_redis, work)
