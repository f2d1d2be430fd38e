"""Defines the metadata of a video as a request body. Its fields, limits and JSON schema come from ``METADATA``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from model.engagement.attributes import (
    ALLOWED,
    ALLOWED_NAME,
    MAX_ATTRIBUTES,
    MAX_ITEM,
    MAX_ITEMS,
    MAX_NUMBER,
    MAX_TEXT,
    is_name,
    is_value,
)
from model.engagement.video import METADATA, MetadataField
from model.features.attributes import ALLOWED_VALUES, Attribute
from service.problems import Invalid
from service.store.snapshot import signed
from service.store.store import Registration
from service.videos.request_bodies import time_field


class MetadataBody(BaseModel):
    """Base class of ``VideoBody``, with everything except the optional fields."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    published_at: time_field("published_at")  # type: ignore[valid-type]

    def registration(self, client: str = "") -> Registration:
        """Return the data that the store keeps for this metadata. Equal metadata gives equal JSON.

        ``client`` is the name of the API key that registers the video.
        """
        left_out = {"published_at", *self.unused(), *([] if self.given_attributes() else ["attributes"])}
        known = self.model_dump(exclude=left_out, exclude_none=True)
        text = msgspec.json.encode(known, order="sorted").decode()
        return Registration(int(self.published_at), signed(text, client))

    def given_attributes(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dict(getattr(self, "attributes", None) or {})

    def unused(self) -> list[str]:
        """Return the names of fields that were given but are not used."""
        return sorted(self.__pydantic_extra__ or ())


def _joined(value: object) -> object:
    """Join a list of tags into one text. Return any other value unchanged."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(tag, str) for tag in value) else value


def _attributes(values: object) -> object:
    """Check attributes against the limits, and return them without missing values. Whole numbers become floats."""
    if not isinstance(values, dict) or len(values) > MAX_ATTRIBUTES:
        given = values if not isinstance(values, dict) else f"{len(values)} attributes"
        raise Invalid("attributes", given, f"an object with at most {MAX_ATTRIBUTES} attributes")
    known: dict[str, Any] = {}
    for name, value in values.items():
        if not is_name(name):
            raise Invalid("attributes", name, ALLOWED_NAME)
        if name.strip().casefold() in _FIELDS:
            raise Invalid(f"attributes.{name}", value, f"another name: {name.strip().casefold()} is a field of a video")
        if value is None or value == "":
            continue
        if not is_value(value):
            raise Invalid(f"attributes.{name}", value, ALLOWED)
        known[name] = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return known


def check_kinds(values: Mapping[str, Any], declared: Iterable[Attribute]) -> None:
    """Raise Invalid if an attribute's value is not of the kind that the active bundle declares.

    An attribute that the bundle does not declare may have any value.
    """
    for attribute in declared:
        if (value := values.get(attribute.name)) is not None and not attribute.accepts(value):
            allowed = f"{ALLOWED_VALUES[attribute.kind]}: the active bundle reads this attribute as a {attribute.kind}"
            raise Invalid(f"attributes.{attribute.name}", value, allowed)


def _type(declared: MetadataField) -> Any:
    if declared.kind == "attributes":
        return Annotated[dict[str, Any], BeforeValidator(_attributes), WithJsonSchema(_ATTRIBUTES_SCHEMA)]
    if declared.kind == "number":
        return Annotated[float, Field(ge=0, le=declared.limit, allow_inf_nan=False)]
    text: Any = Annotated[str, Field(max_length=int(declared.limit))]
    return (
        Annotated[str, BeforeValidator(_joined), Field(max_length=int(declared.limit))]
        if declared.name == "tags"
        else text
    )


_FIELDS: Final = frozenset(("video_id", "published_at", *(declared.name for declared in METADATA)))
_ATTRIBUTES_SCHEMA: Final = {
    "type": "object",
    "maxProperties": MAX_ATTRIBUTES,
    "description": "further properties. The active bundle reads those that it declares, the others are kept",
    "additionalProperties": {
        "anyOf": [
            {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
            {"type": "boolean"},
            {"type": "string", "maxLength": MAX_TEXT},
            {"type": "array", "maxItems": MAX_ITEMS, "items": {"type": "string", "maxLength": MAX_ITEM}},
            {"type": "null"},
        ]
    },
}
_OPTIONAL: Final[dict[str, Any]] = {declared.name: (_type(declared) | None, None) for declared in METADATA}

VideoBody: Final = create_model(
    "VideoBody",
    __base__=MetadataBody,
    __doc__="Metadata of a video. Further fields are accepted but not used. The response lists them.",
    **_OPTIONAL,
)
