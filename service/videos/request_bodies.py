"""Bodies of the routes that take one object: a prediction, and a correction."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.store.rows.row_fields import MAX_COUNT
from service.times import ALLOWED, parse_time

_TIME_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}], "description": ALLOWED}
)


def time_field(name: str) -> Any:
    """The type of a field that holds a time; its value is in microseconds since 1970 UTC."""
    return Annotated[int, BeforeValidator(lambda value: parse_time(name, value)), _TIME_SCHEMA]


class CorrectionBody(BaseModel):
    """A count that was wrong. Give ``type``, or ``counter`` (its column, such as views)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    type: str | None = None
    """An engagement type."""
    counter: str | None = None
    """A counter column."""
    value: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    """What it should have been, below ``replaces``."""
    replaces: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    """The count as it is now; 409 if it has changed by then."""
    from_: time_field("from") | None = Field(None, alias="from")  # type: ignore[valid-type]
    """Readings from this time on that are above ``value`` were wrong; without it, those equal to ``replaces``."""


class PredictBody(BaseModel):
    """A video, its new rows, and the requested horizons."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    video: dict[str, Any]
    """``video_id``, and the metadata unless it is registered already."""
    events: list[Any] = []
    counters: list[Any] = []
    at: time_field("at") | None = None  # type: ignore[valid-type]
    horizons_s: list[Any] | None = None
