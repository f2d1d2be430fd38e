"""The fields of a row, declared once: parsers, decoders, the OpenAPI schema and the columns of a batch derive from them.

An event row has ``EVENT_FIELDS``. A counters row has ``SHARED_FIELDS`` and one field for each counter column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_COUNT: Final = 2**53 - 1
"""Largest count, sum or audience: the store's arithmetic is exact up to it."""


@dataclass(frozen=True, slots=True)
class NumberField:
    """A whole number from ``minimum`` to ``MAX_COUNT``; ``default`` is the value of a row without the field."""

    name: str
    minimum: int
    default: int


VIDEO_ID: Final = "video_id"
"""Required: text of 1 to ``max_id_length`` characters."""
TIME: Final = "time"
"""Required: a time as ``service.times`` reads it."""
ID: Final = "id"
"""Optional: text of 1 to ``max_id_length`` characters; rows of a video with the same id count once."""
TYPE: Final = "type"
"""Required: an engagement type of the served bundle."""
COUNT: Final = NumberField("count", minimum=1, default=1)
REACH: Final = NumberField("reach", minimum=0, default=0)

SHARED_FIELDS: Final = (VIDEO_ID, TIME, ID)
EVENT_FIELDS: Final = (VIDEO_ID, TIME, TYPE, COUNT.name, REACH.name, ID)
ONLY_EVENT_FIELDS: Final = frozenset(EVENT_FIELDS) - frozenset(SHARED_FIELDS)
"""Fields that only an event row has."""
COUNTER_MINIMUM: Final = 0
"""Smallest value of a counter; a counters row has at least one counter, and none has a default."""
EVENT_FIELDS_TEXT: Final = f"the fields {', '.join(EVENT_FIELDS)}"
