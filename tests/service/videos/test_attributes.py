"""Attributes over HTTP: checked, kept with the video, and given to the model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.running import T0, Live

GIVEN = {"hd": True, "regions": ["at", "xx"], "score": 4, "label": "new", "empty": None}


def test_attributes_are_kept_with_the_video(service: Live) -> None:
    assert service.register("v", title="t", attributes=GIVEN)["unused_fields"] == []
    stored = service.http.get("/videos/v").json()
    assert stored["title"] == "t"
    assert stored["attributes"] == {"hd": True, "label": "new", "regions": ["at", "xx"], "score": 4.0}
    told = service.register("v", title="t", attributes={**GIVEN, "score": 4.0})
    assert told["changed"] is False and told["version"] == stored["version"]
    assert service.register("v", title="t", attributes={"score": 5})["changed"] is True
    assert service.http.get("/videos/v").json()["attributes"] == {"score": 5.0}
    service.register("v", title="t", attributes={})
    assert "attributes" not in service.http.get("/videos/v").json()


def test_a_prediction_takes_attributes(service: Live) -> None:
    video = {"video_id": "p", "published_at": T0, "attributes": {"hd": False, "mood": "calm"}}
    answer = service.http.post("/predict", json={"video": video, "at": T0 + 60, "horizons_s": [3600]})
    assert answer.status_code == 200, answer.text
    assert service.http.get("/videos/p").json()["attributes"] == {"hd": False, "mood": "calm"}
    video["attributes"] = {"hd": "no"}
    refused = service.http.post("/predict", json={"video": video}).json()
    assert (refused["status"], refused["field"], refused["value"]) == (422, "attributes.hd", "no")


@pytest.mark.parametrize(
    ("attributes", "field", "value", "allowed"),
    [
        ({"hd": 1}, "attributes.hd", "1", "true or false: the active bundle reads this attribute as a boolean"),
        ({"regions": 5}, "attributes.regions", "5.0", "a list of strings, or a string: the active bundle"),
        ({"a": {"b": 1}}, "attributes.a", "{'b': 1}", "a number from -1e+15 to 1e+15, true, false, a string"),
        ({"a": [1]}, "attributes.a", "[1]", "or a list of at most 512 strings of at most 256 characters"),
        ({"a": 1e16}, "attributes.a", "1e+16", "a number from -1e+15 to 1e+15"),
        ({"a": "x" * 1025}, "attributes.a", "xxx", "a string of at most 1,024 characters"),
        ({"": 1}, "attributes", "", "names of 1 to 128 characters"),
        ({"Title ": "x"}, "attributes.Title ", "x", "another name: title is a field of a video"),
        ({f"a{i}": i for i in range(65)}, "attributes", "65 attributes", "an object with at most 64 attributes"),
        ([1], "attributes", "[1]", "an object with at most 64 attributes"),
        (None, "attributes", None, None),
    ],
)
def test_limits(service: Live, attributes: Any, field: str, value: str | None, allowed: str | None) -> None:
    answer = service.http.put("/videos/l", json={"published_at": T0, "attributes": attributes})
    if value is None:
        assert answer.status_code == 200
        return
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field)
    assert str(problem["value"]).startswith(value) and (allowed or "") in problem["allowed"]
    assert service.http.get("/videos/l").status_code == 404
