"""Bodies of the routes that take one object: a video, and a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from model.engagement.bins import SECOND_US
from service.problems import Invalid, did_you_mean
from service.store.rows.row_fields import MAX_COUNT
from service.store.snapshot import signed
from service.store.store import Registration
from service.times import ALLOWED, parse_time

M = TypeVar("M", bound=BaseModel)

MAX_FIELDS: Final = 256
"""Fields of one object, those included that are not used."""
_NUMBERS: Final = frozenset(("float_type", "int_type", "float_parsing", "int_parsing"))
DEFAULT_HORIZONS_S: Final = (3600, 6 * 3600, 24 * 3600, 72 * 3600, 7 * 86400, 30 * 86400)

_TIME_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}], "description": ALLOWED}
)


def _time(field: str) -> Any:
    return Annotated[int, BeforeValidator(lambda value: parse_time(field, value)), _TIME_SCHEMA]


def _joined(value: object) -> object:
    return ",".join(value) if isinstance(value, list) and all(isinstance(tag, str) for tag in value) else value


Name = Annotated[str, Field(max_length=1024)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class VideoBody(BaseModel):
    """Metadata of a video; further fields are taken, not used, and named in the answer."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    published_at: _time("published_at")  # type: ignore[valid-type]
    title: Annotated[str, Field(max_length=5_000)] | None = None
    description: Annotated[str, Field(max_length=50_000)] | None = None
    tags: Annotated[str, BeforeValidator(_joined), Field(max_length=20_000)] | None = None
    category: Name | None = None
    language: Name | None = None
    duration_s: Amount | None = None
    creator_id: Name | None = None
    creator_name: Name | None = None
    creator_followers: Amount | None = None

    def registration(self, client: str = "") -> Registration:
        """What the store keeps; equal metadata gives equal JSON. ``client``: the name of the key that registers it."""
        known = self.model_dump(exclude={"published_at"} | set(self.unused()), exclude_none=True)
        text = msgspec.json.encode(known, order="sorted").decode()
        return Registration(int(self.published_at), signed(text, client))

    def unused(self) -> list[str]:
        """Names of the fields that were given but are not used."""
        return sorted(self.__pydantic_extra__ or ())


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
    """The count as it is now; 409 when it is another by then."""
    from_: _time("from") | None = Field(None, alias="from")  # type: ignore[valid-type]
    """Readings from this time on that are above ``value`` were wrong; without it, those that said ``replaces``."""


class PredictBody(BaseModel):
    """A video, what happened to it, and what is asked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    video: dict[str, Any]
    """``video_id``, and the metadata unless it is registered already."""
    events: list[Any] = []
    counters: list[Any] = []
    at: _time("at") | None = None  # type: ignore[valid-type]
    horizons_s: list[Any] | None = None


def parse_form(form: type[M], value: object, place: str = "body") -> M:
    """Validate an object; raises Invalid for the first thing that is wrong in it."""
    if not isinstance(value, dict):
        raise Invalid(place, value, "a JSON object")
    if len(value) > MAX_FIELDS:
        raise Invalid(place, f"{len(value)} fields", f"at most {MAX_FIELDS} fields")
    _check_text(place, value, form)
    if form.model_config.get("extra") == "forbid":
        known = [field.alias or name for name, field in form.model_fields.items()]
        for name in value:
            if name not in known:
                allowed = f"the fields {', '.join(known)}{did_you_mean(name, known)}"
                raise Invalid(name, value[name], allowed)
    try:
        return form.model_validate(value)
    except ValidationError as errors:
        first = errors.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or place
        if first["type"] == "missing":
            raise Invalid(field, "missing", "a value: this field is required") from None
        allowed = first["msg"].removeprefix("Input should be ")
        if first["type"] in _NUMBERS and isinstance(first["input"], str):
            allowed += ", as a JSON number and not as text"
        raise Invalid(field, first["input"], allowed) from None


def _check_text(place: str, value: dict[str, Any], form: type[BaseModel]) -> None:
    """Refuse text with a lone surrogate, which JSON can write and Unicode does not have; rows are looked at one by one."""
    try:
        if form is VideoBody:
            msgspec.json.encode(value)
        else:
            "".join(value).encode()
    except UnicodeEncodeError:
        for name, part in value.items():
            try:
                msgspec.json.encode((name, part))
            except UnicodeEncodeError:
                raise Invalid(name, part, "text of Unicode characters: a surrogate alone is none") from None
        raise Invalid(place, "a lone surrogate", "text of Unicode characters") from None
    except RecursionError:
        raise Invalid(place, "lists in lists", "values nested less deep") from None
    except OverflowError:
        # A number past 64 bits is looked at where its field is known.
        return


def parse_horizons(values: Sequence[Any] | None, max_horizon_us: int, most: int) -> tuple[int, ...]:
    """Horizons in microseconds, ascending, each once; the default list as far as the bundle reaches."""
    max_s = max_horizon_us / SECOND_US
    if values is None:
        return tuple(s * SECOND_US for s in DEFAULT_HORIZONS_S if s <= max_s) or (max_horizon_us,)
    if not 1 <= len(values) <= most:
        raise Invalid("horizons_s", f"{len(values)} horizons", f"1 to {most} horizons")
    found = set()
    for value in values:
        horizon_us = round(value * SECOND_US) if type(value) in (int, float) and 0 < value <= max_s else 0
        if horizon_us == 0:
            raise Invalid(
                "horizons_s", value, f"seconds, more than 0 and at most {max_s:g}, the bundle's longest horizon"
            )
        found.add(horizon_us)
    return tuple(sorted(found))
