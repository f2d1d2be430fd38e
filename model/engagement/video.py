"""A video's metadata: everything known about it except its engagement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self

from model.engagement.attributes import MAX_ATTRIBUTES, Attributes, attributes_of


def _text(max_length: int) -> Any:
    """Declare an optional text field of at most ``max_length`` characters."""
    return field(default=None, metadata={"kind": "text", "limit": max_length})


def _number(maximum: float = 1e15) -> Any:
    """Declare an optional number field with values from 0 to ``maximum``."""
    return field(default=None, metadata={"kind": "number", "limit": maximum})


@dataclass(frozen=True, slots=True)
class Video:
    """Content and context of one video. All fields except the first two may be missing.

    ``published_us`` is UTC in microseconds since 1970. ``duration_s`` is in seconds. ``creator_followers`` is a
    count. A missing field is None. For a missing field, the model gets a mask, never a zero. ``attributes`` are further
    properties under names that the data's owner chooses.

    The metadata fields are declared only here. The code for files, requests, the store and the HTTP schema reads the
    list of these fields from ``METADATA``.
    """

    video_id: str
    published_us: int
    title: str | None = _text(5_000)
    description: str | None = _text(50_000)
    tags: str | None = _text(20_000)
    category: str | None = _text(1_024)
    language: str | None = _text(1_024)
    duration_s: float | None = _number()
    creator_id: str | None = _text(1_024)
    creator_name: str | None = _text(1_024)
    creator_followers: float | None = _number()
    attributes: Attributes = field(default=(), metadata={"kind": "attributes", "limit": MAX_ATTRIBUTES})

    def metadata(self) -> dict[str, Any]:
        """Return the optional fields that are present, in the form that JSON uses. Attributes are an object."""
        found = {declared.name: getattr(self, declared.name) for declared in METADATA}
        found["attributes"] = {name: list(v) if isinstance(v, tuple) else v for name, v in self.attributes}
        return {name: value for name, value in found.items() if value is not None and value != {}}

    @classmethod
    def from_metadata(cls, video_id: str, published_us: int, metadata: Mapping[str, Any]) -> Self:
        """Return the video with the optional fields ``metadata``, as ``metadata()`` returns them."""
        fields = {name: value for name, value in metadata.items() if name != "attributes"}
        return cls(video_id, published_us, **fields, attributes=attributes_of(metadata.get("attributes") or {}))


@dataclass(frozen=True, slots=True)
class MetadataField:
    """An optional field of a video.

    ``limit`` is the maximum number of characters of a text, the largest value of a number, or the maximum number of
    attributes. The smallest value of a number is 0.
    """

    name: str
    kind: Literal["text", "number", "attributes"]
    limit: float


METADATA: Final = tuple(MetadataField(f.name, **f.metadata) for f in fields(Video) if f.metadata)
"""The optional fields, in order."""
