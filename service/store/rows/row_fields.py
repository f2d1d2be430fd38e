"""The fields of a row. Parsers, decoders, the OpenAPI schema and the columns of a batch are derived from these definitions.

An event row has ``EVENT_FIELDS``. A counters row has ``SHARED_FIELDS`` and one field for each counter column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_COUNT: Final = 2**53 - 1
"""Largest allowed count, sum or audience. The store's arithmetic is exact up to this number."""


@dataclass(frozen=True, slots=True)
class NumberField:
    """A field with a whole number from ``minimum`` to ``MAX_COUNT``. ``default`` is the value if a row lacks the field."""

    name: str
    minimum: int
    default: int


VIDEO_ID: Final = "video_id"
"""Required. Text of 1 to ``max_id_length`` characters."""
TIME: Final = "time"
"""Required. A time in a form that ``service.times`` accepts."""
ID: Final = "id"
"""Optional. Text of 1 to ``max_id_length`` characters. If several rows of a video have the same id, only one row counts."""
TYPE: Final = "type"
"""Required. An engagement type of the served bundle."""
COUNT: Final = NumberField("count", minimum=1, default=1)
REACH: Final = NumberField("reach", minimum=0, default=0)

SIGNALS: Final = "signals"
"""Optional, for counters. An object that maps names of signals to numbers.

In the cells of a row, the name of a signal begins with ``SIGNAL_MARK``.
"""

SHARED_FIELDS: Final = (VIDEO_ID, TIME, ID)
EVENT_FIELDS: Final = (VIDEO_ID, TIME, TYPE, COUNT.name, REACH.name, ID)
ONLY_EVENT_FIELDS: Final = frozenset(EVENT_FIELDS) - frozenset(SHARED_FIELDS)
"""Fields that only an event row has."""
COUNTER_MINIMUM: Final = 0
"""Smallest value of a counter. A counters row has at least one counter. Counters have no default."""
EVENT_FIELDS_TEXT: Final = f"the fields {', '.join(EVENT_FIELDS)}"
