"""Defines the metadata of a video as a request body. Its fields, limits and JSON schema come from ``METADATA``."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from model.engagement.video import METADATA, MetadataField
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
        known = self.model_dump(exclude={"published_at"} | set(self.unused()), exclude_none=True)
        text = msgspec.json.encode(known, order="sorted").decode()
        return Registration(int(self.published_at), signed(text, client))

    def unused(self) -> list[str]:
        """Return the names of fields that were given but are not used."""
        return sorted(self.__pydantic_extra__ or ())


def _joined(value: object) -> object:
    """Join a list of tags into one text. Return any other value unchanged."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(tag, str) for tag in value) else value


def _type(declared: MetadataField) -> Any:
    if declared.kind == "number":
        return Annotated[float, Field(ge=0, le=declared.limit, allow_inf_nan=False)]
    text: Any = Annotated[str, Field(max_length=int(declared.limit))]
    return (
        Annotated[str, BeforeValidator(_joined), Field(max_length=int(declared.limit))]
        if declared.name == "tags"
        else text
    )


_OPTIONAL: Final[dict[str, Any]] = {declared.name: (_type(declared) | None, None) for declared in METADATA}

VideoBody: Final = create_model(
    "VideoBody",
    __base__=MetadataBody,
    __doc__="Metadata of a video. Further fields are accepted but not used. The response lists them.",
    **_OPTIONAL,
)
