"""OpenAPI schemas of responses. A test checks every response against them."""

from __future__ import annotations

from typing import Any, Final

from service.forecasts.forecast_json import QUANTILE_NAMES

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_NUMBER: Final[Schema] = {"type": "number"}
_MAYBE_NUMBER: Final[Schema] = {"type": ["number", "null"]}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
_FLAG: Final[Schema] = {"type": "boolean"}
_COUNTS: Final[Schema] = {"type": "object", "additionalProperties": _WHOLE, "description": "counts by engagement type"}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _object(**properties: Schema) -> Schema:
    """Return the schema of an object with exactly these members."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def _optional(schema: Schema, **more: Schema) -> Schema:
    """Return ``schema`` with additional optional members."""
    return {**schema, "properties": {**schema["properties"], **more}}


def _with(schema: Schema, **more: Schema) -> Schema:
    """Return ``schema`` with additional required members."""
    return {
        **schema,
        "required": [*schema["required"], *more],
        "properties": {**schema["properties"], **more},
    }


PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457 problem details. A 422 names the field, its value, and the allowed values",
    "required": ["type", "title", "status", "detail", "retryable"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "retryable": {"type": "boolean", "description": "whether the same request can succeed later"},
        "field": _TEXT,
        "value": _TEXT,
        "request_id": {
            "type": "string",
            "description": "the request's id, as in the header X-Request-ID and in the service's log",
        },
    },
}

_REJECTION: Final = _object(index=_WHOLE, reason=_TEXT, field=_TEXT, value=_TEXT, allowed=_TEXT, retryable=_FLAG)
_IGNORED: Final[Schema] = {
    "type": "object",
    "additionalProperties": _WHOLE,
    "description": "number of rows for each counter that the served bundle does not know; absent if there are none",
}
_OUTCOME: Final = _optional(
    _object(
        accepted=_WHOLE,
        duplicate=_WHOLE,
        parked=_WHOLE,
        rejected=_WHOLE,
        corrected=_WHOLE,
        rejections=_list(_REJECTION),
    ),
    ignored=_IGNORED,
)
_MEAN: Final[Schema] = {
    "type": "number",
    "description": "count whose growth log2((1 + count) / (1 + count now)) is the expected growth; q0.5 is the median",
}
_QUANTILES: Final = _object(
    **{"horizon_s": _NUMBER, "time": _TIME, "mean": _MEAN, **dict.fromkeys(QUANTILE_NAMES, _NUMBER)}
)
_NEIGHBOUR: Final = _object(
    video_id=_TEXT,
    similarity=_MAYBE_NUMBER,
    content_similarity=_MAYBE_NUMBER,
    trajectory_similarity=_MAYBE_NUMBER,
    growth={"type": "object", "additionalProperties": _MAYBE_NUMBER, "description": "growth factor by horizon_s"},
)
_THRESHOLD: Final = _object(
    threshold=_NUMBER,
    probability={
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        "description": "probability, by horizon_s, that the count is at least the threshold at that horizon",
    },
    passed_by={
        "type": "object",
        "additionalProperties": {"anyOf": [_TIME, {"type": "null"}]},
        "description": "time by which the threshold is passed with a probability of 0.5 and of 0.9. It is the time of the forecast if the "
        "threshold is passed already, and null if it is later than the bundle's longest horizon",
    },
)
_THRESHOLDS: Final[Schema] = {**_list(_THRESHOLD), "description": "absent unless thresholds were asked"}
_OF_METRIC: Final = _optional(
    _object(
        metric=_TEXT,
        value_now=_MAYBE_NUMBER,
        forecasts=_list(_QUANTILES),
        intensity_per_hour={"type": "object", "additionalProperties": _MAYBE_NUMBER},
        neighbours=_list(_NEIGHBOUR),
        extrapolated=_list(_TEXT),
    ),
    thresholds=_THRESHOLDS,
)
_FORECAST: Final = _optional(
    _with(
        _OF_METRIC,
        video_id=_TEXT,
        at=_TIME,
        counts=_COUNTS,
        model_version=_TEXT,
        state_age_s=_MAYBE_NUMBER,
        cold_start=_FLAG,
        as_of_bins=_FLAG,
        degraded=_list(_TEXT),
        stale=_FLAG,
    ),
    further={**_list(_OF_METRIC), "description": "the other requested metrics; absent unless more than one was asked"},
)
_PREDICTED: Final = _with(
    _FORECAST,
    rows=_optional(
        _object(accepted=_WHOLE, duplicate=_WHOLE, corrected=_WHOLE, parked_applied=_WHOLE, parked_rejected=_WHOLE),
        ignored=_IGNORED,
    ),
)
_REGISTERED: Final = _object(
    video_id=_TEXT,
    version=_WHOLE,
    changed=_FLAG,
    parked_applied=_WHOLE,
    parked_rejected=_WHOLE,
    unused_fields=_list(_TEXT),
)
_VIDEO: Final[Schema] = {
    "type": "object",
    "required": ["video_id", "published_at", "version", "counts", "fed_by", "bins", "newest_row_at", "stale"],
    "properties": {
        "video_id": _TEXT,
        "published_at": _TIME,
        "version": _WHOLE,
        "counts": _COUNTS,
        "fed_by": {"type": "object", "additionalProperties": {"enum": ["events", "counters"]}},
        "bins": _WHOLE,
        "newest_row_at": {"anyOf": [_TIME, {"type": "null"}]},
        "stale": _FLAG,
    },
    "description": "a stored video, together with those metadata fields that are known",
}
_LISTED: Final = _object(
    video_id=_TEXT,
    score=_NUMBER,
    title={"type": ["string", "null"]},
    counts=_COUNTS,
    value_now=_MAYBE_NUMBER,
    expected=_MAYBE_NUMBER,
    mean=_MAYBE_NUMBER,
    horizon_s=_NUMBER,
    as_of=_TIME,
)
_MODEL: Final[Schema] = {
    "type": "object",
    "required": ["version", "folder", "state", "reason"],
    "properties": {
        "version": _TEXT,
        "folder": {"type": ["string", "null"]},
        "state": {"enum": ["active", "shadow", "loaded", "available", "broken"]},
        "reason": {"type": ["string", "null"]},
    },
}
_STATE: Final[Schema] = {"enum": ["ok", "down"]}


def response(schema: Schema, kind: str = "application/json") -> Schema:
    """Return the part of an operation that describes its response with status 200."""
    return {"responses": {"200": {"content": {kind: {"schema": schema}}}}}


OUTCOME: Final = response(_OUTCOME)
FORECAST: Final = response(_FORECAST)
PREDICTED: Final = response(
    {"anyOf": [_PREDICTED, _list({"anyOf": [_with(_PREDICTED, status={"const": 200}), PROBLEM]})]}
)
REGISTERED: Final = response(_REGISTERED)
CORRECTED: Final = response(_object(video_id=_TEXT, type=_TEXT, replaced=_WHOLE, total=_WHOLE, version=_WHOLE))
VIDEO: Final = response(_VIDEO)
LIST: Final = response(
    _optional(
        _object(sort=_TEXT, videos=_list(_LISTED), next_cursor={"type": ["string", "null"]}),
        metric={"type": "string", "description": "absent for the first metric of the bundle"},
    )
)
MODELS: Final = response(_object(models=_list(_MODEL)))
OBJECT: Final = response({"type": "object"})
METRICS: Final = response(_TEXT, "text/plain")
LIVE: Final = response(_object(status={"const": "live"}))
READY: Final = response(
    _object(
        status={"const": "ready"},
        store=_STATE,
        store_warnings=_list(_TEXT),
        clock_offset_s=_MAYBE_NUMBER,
        model=_STATE,
        bank=_STATE,
        model_version=_TEXT,
    )
)

PROBLEMS: Final[dict[int | str, Schema]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": PROBLEM}},
    }
    for status, text in (
        ("4XX", "The request is refused. After 408 and 429, the same request can succeed later"),
        ("5XX", "A component is down or overloaded (503, with Retry-After), or the service has failed (500)"),
    )
}
