"""Defines the bodies of the routes that take one object: a prediction, and a correction."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.store.rows.row_fields import MAX_COUNT
from service.times import ALLOWED, parse_time
from service.videos.thresholds import MAX_THRESHOLDS

_TIME_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}], "description": ALLOWED}
)
THRESHOLDS: Final = {
    "type": "array",
    "items": {"type": "number", "exclusiveMinimum": 0},
    "minItems": 1,
    "maxItems": MAX_THRESHOLDS,
}


METRICS: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def time_field(name: str) -> Any:
    """Return the type of a field that holds a time. Its value is in microseconds since 1970 UTC."""
    return Annotated[int, BeforeValidator(lambda value: parse_time(name, value)), _TIME_SCHEMA]


class CorrectionBody(BaseModel):
    """Correction of a count that was wrong. Give either ``type`` or ``counter``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    type: str | None = None
    """An engagement type."""
    counter: str | None = None
    """A counter column, such as ``views``. The correction applies to the engagement type that this column counts."""
    value: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    """What the count should have been. The value must be below ``replaces``."""
    replaces: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    """The present count. If the count has changed since the client read it, the response has status 409."""
    from_: time_field("from") | None = Field(None, alias="from")  # type: ignore[valid-type]
    """Time from which all readings above ``value`` are wrong. Without this time, only readings equal to ``replaces`` are wrong."""


class PredictBody(BaseModel):
    """A video, its new rows, the requested horizons and metrics, and the thresholds whose probabilities of being passed are requested."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    video: dict[str, Any]
    """``video_id``, and the metadata unless the video is registered already."""
    events: list[Any] = []
    counters: list[Any] = []
    at: time_field("at") | None = None  # type: ignore[valid-type]
    horizons_s: list[Any] | None = None
    thresholds: Annotated[
        list[Any] | None, WithJsonSchema({"anyOf": [THRESHOLDS, {"type": "null"}], "default": None})
    ] = None
    """Counts, at most 16."""
    metrics: Annotated[list[Any] | None, WithJsonSchema({"anyOf": [METRICS, {"type": "null"}], "default": None})] = None
    """Metrics of the served bundle, by default its first one."""
