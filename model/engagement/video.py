"""A video's metadata: everything known about it except its engagement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Video:
    """Content and context of one video; all fields except the first two may be missing.

    ``published_us`` is UTC in microseconds since 1970, ``duration_s`` seconds, ``creator_followers`` a count. A missing field is
    None. The model sees it as a mask, never as zero.
    """

    video_id: str
    published_us: int
    title: str | None = None
    description: str | None = None
    tags: str | None = None
    category: str | None = None
    language: str | None = None
    duration_s: float | None = None
    creator_id: str | None = None
    creator_name: str | None = None
    creator_followers: float | None = None
