"""Requests generated from the published schema: none fails, and every response matches the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import booleans
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.fakes import FakeForecaster
from tests.service.running import T0, Live, live

pytestmark = pytest.mark.slow

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
"""Number of valid requests for each operation, and of invalid ones."""


@pytest.fixture(scope="module")
def served(redis_url: str) -> Iterator[Live]:
    with live(redis_url, forecaster=FakeForecaster(("total", "like"))) as service:
        service.redis.flushall()
        for video in ("0", "1", "v"):
            service.register(video, title="t", creator_id="c")
        service.post("/events", [{"video_id": "v", "time": T0 + i, "type": "view"} for i in range(50)])
        yield service


GOOD: list[tuple[str, str, Any]] = [
    ("GET", "/videos/v/forecast", None),
    ("GET", "/videos/v/forecast?horizons_s=60,3600", None),
    ("GET", "/videos/v/forecast?horizons_s=60,3600&thresholds=10,1000000", None),
    ("GET", "/videos/v/forecast?horizons_s=60,3600&metrics=like,total", None),
    ("GET", "/videos/v", None),
    ("GET", "/videos", None),
    ("PUT", "/videos/good", {"published_at": T0, "title": "t", "further": 1}),
    ("POST", "/predict", {"video": {"video_id": "v"}, "events": [{"time": T0 + 9, "type": "like"}]}),
    ("POST", "/predict", {"video": {"video_id": "v"}, "thresholds": [10, 2.5e6]}),
    ("POST", "/predict", [{"video": {"video_id": "v"}}, {"video": {"video_id": "unknown"}}, 7]),
    ("POST", "/events", [{"video_id": "v", "time": T0, "type": "view"}, {"video_id": "v"}, {"video_id": "w"}]),
    ("POST", "/counters", [{"video_id": "0", "time": T0 + 1, "views": 5}, {"video_id": "0", "time": T0, "likes": -1}]),
    ("PUT", "/videos/lowered", {"published_at": T0}),
    ("POST", "/events", [{"video_id": "lowered", "time": T0, "type": "view", "count": 5}]),
    ("POST", "/videos/lowered/corrections", {"type": "view", "value": 1, "replaces": 5}),
    ("GET", "/quality", None),
    ("GET", "/models", None),
    ("GET", "/metrics", None),
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("DELETE", "/videos/1", None),
]
"""One valid call of every operation that needs only one model."""


@pytest.fixture(scope="module")
def schema(served: Live) -> BaseSchema:
    # A stream does not end.
    return schemathesis.openapi.from_url(f"{served.http.base_url}/openapi.json").exclude(path_regex="/stream$")


def operation_of(schema: BaseSchema, method: str, path: str) -> APIOperation[Any, Any, Any, Any]:
    template = re.sub(r"^/videos/[^/?]+", "/videos/{video_id}", path).partition("?")[0]
    return schema[template][method]


@pytest.mark.parametrize(("method", "path", "body"), GOOD)
def test_responses_to_valid_calls_match_the_schema(
    served: Live, schema: BaseSchema, method: str, path: str, body: Any
) -> None:
    answer = served.http.request(method, path, json=body)
    assert answer.status_code in (200, 204), answer.text
    operation_of(schema, method, path).validate_response(answer)


def test_the_schema_rejects_a_wrong_response(served: Live, schema: BaseSchema) -> None:
    operation = operation_of(schema, "GET", "/videos/v/forecast")
    good = served.http.get("/videos/v/forecast")
    for change in ({"value_now": "3"}, {"further": 1}, {"forecasts": [{}]}, {"at": None}):  # type: ignore[var-annotated]
        wrong = httpx.Response(200, json={**good.json(), **change}, request=good.request)
        wrong.elapsed = good.elapsed
        with pytest.raises((Failure, FailureGroup)):
            operation.validate_response(wrong)


def test_responses_to_generated_requests_match_the_schema(
    served: Live, schema: BaseSchema, subtests: pytest.Subtests
) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) >= 16
    with requests.Session() as session:
        for operation in operations:
            # Every text is a valid path; only bodies and queries can be invalid.
            wrong = [GenerationMode.NEGATIVE] if len(operation.body) + len(operation.query) else []
            for mode in (GenerationMode.POSITIVE, *wrong):

                @seed(7)
                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    database=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode), known=booleans())
                def conforms(case: Case[Any], known: bool) -> None:
                    if known and "video_id" in case.path_parameters:
                        case.path_parameters["video_id"] = "v"
                    case.call_and_validate(checks=CHECKS, session=session, timeout=20)

                with subtests.test(operation=operation.label, mode=mode.value):
                    conforms()
