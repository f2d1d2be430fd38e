"""OpenAPI schemas of requests that are parsed by hand, because they are large or need custom errors."""

from __future__ import annotations

from typing import Any, Final

from model.engagement.history import Mode
from model.engagement.signals import MAX_SIGNALS, MAX_VALUE
from service.rankings.pages import DEFAULT_LIMIT, MAX_LIMIT
from service.routes import response_schemas
from service.store import keys
from service.store.rows.row_fields import COUNT, COUNTER_MINIMUM, MAX_COUNT, REACH, SIGNALS
from service.times import ALLOWED
from service.videos.metadata import VideoBody
from service.videos.request_bodies import METRICS, THRESHOLDS, CorrectionBody, PredictBody

_TIME: Final = {"description": ALLOWED, "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}
_ID: Final = {"type": "string", "minLength": 1}
_COUNTER: Final = {"type": "integer", "minimum": COUNTER_MINIMUM, "maximum": MAX_COUNT}
_FIELDS: Final[dict[Mode, dict[str, Any]]] = {
    "events": {
        "type": {"type": "string", "description": "an engagement type of the served bundle"},
        COUNT.name: {**_COUNTER, "minimum": COUNT.minimum, "default": COUNT.default},
        REACH.name: {**_COUNTER, "minimum": REACH.minimum, "description": "size of the acting account's audience"},
    },
    "counters": {
        **dict.fromkeys(("views", "likes", "comments", "shares"), _COUNTER),
        SIGNALS: {
            "type": "object",
            "maxProperties": MAX_SIGNALS,
            "additionalProperties": {"type": ["number", "null"], "minimum": -MAX_VALUE, "maximum": MAX_VALUE},
            "description": "readings that may rise and fall, such as a rank. The newest reading stands",
        },
    },
}
_VIDEO_ID: Final = {"name": "video_id", "in": "path", "required": True, "schema": _ID}
_REQUEST_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    "description": "a unique value per request, such as a UUID. If a request is repeated with its value, events without an id count once",
}

VERSION_PATH: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "version",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
            "description": "a version's hash, the first 8 or more characters of its hash, or its folder",
        }
    ]
}
VIDEO_PATH: Final[dict[str, Any]] = {"parameters": [_VIDEO_ID]}
_HORIZONS: Final = {
    "name": "horizons_s",
    "in": "query",
    "explode": False,
    "schema": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}},
}
_THRESHOLDS: Final = {
    "name": "thresholds",
    "in": "query",
    "explode": False,
    "schema": THRESHOLDS,
    "description": "counts; the response has the probability of passing each",
}
_METRICS: Final = {
    "name": "metrics",
    "in": "query",
    "explode": False,
    "schema": METRICS,
    "description": "metrics of the served bundle, by default its first one",
}
STREAM_QUERY: Final[dict[str, Any]] = {"parameters": [_VIDEO_ID, _HORIZONS, _THRESHOLDS, _METRICS]}
LIST_QUERY: Final[dict[str, Any]] = response_schemas.LIST | {
    "parameters": [
        {
            "name": "sort",
            "in": "query",
            "schema": {"type": "string", "enum": list(keys.SORTS), "default": keys.SORTS[0]},
        },
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        },
        {
            "name": "cursor",
            "in": "query",
            "schema": {"type": "string"},
            "description": "next_cursor of the previous page",
        },
        {
            "name": "metric",
            "in": "query",
            "schema": {"type": "string"},
            "description": "a metric of the served bundle, by default its first one",
        },
    ]
}
FORECAST_QUERY: Final[dict[str, Any]] = response_schemas.FORECAST | {
    "parameters": [
        _VIDEO_ID,
        {"name": "at", "in": "query", "schema": _TIME},
        _HORIZONS,
        _THRESHOLDS,
        _METRICS,
    ]
}


def _body(*contents: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in contents}}}


def rows_body(mode: Mode) -> dict[str, Any]:
    """Return the schema of a batch of rows, sent as JSON or NDJSON. Gzip is allowed."""
    row = {
        "type": "object",
        "required": ["video_id", "time", *(["type"] if mode == "events" else [])],
        "properties": {"video_id": _ID, "time": _TIME, "id": _ID, **_FIELDS[mode]},
        "additionalProperties": mode == "counters",
    }
    rows = {"type": "array", "items": row}
    either_form = {"anyOf": [rows, {"type": "object", "required": ["rows"], "properties": {"rows": rows}}]}
    return (
        {"parameters": [_REQUEST_KEY]}
        | _body(("application/json", either_form), ("application/x-ndjson", row))
        | response_schemas.OUTCOME
    )


def video_body() -> dict[str, Any]:
    """Return the schema of a video's metadata."""
    return {**VIDEO_PATH, **_body(("application/json", VideoBody.model_json_schema())), **response_schemas.REGISTERED}


def correction_body() -> dict[str, Any]:
    """Return the schema of a correction of a wrong count."""
    return {
        **VIDEO_PATH,
        **_body(("application/json", CorrectionBody.model_json_schema())),
        **response_schemas.CORRECTED,
    }


def predict_body() -> dict[str, Any]:
    """Return the schema of a prediction, or of a list of predictions."""
    one = PredictBody.model_json_schema()
    body = _body(("application/json", {"anyOf": [one, {"type": "array", "items": one}]}))
    return {"parameters": [_REQUEST_KEY]} | body | response_schemas.PREDICTED
