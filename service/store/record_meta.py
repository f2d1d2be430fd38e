"""The packed head of a video's record. The store's Lua functions write the head to the video's key ``meta``."""

from __future__ import annotations

from typing import Final

import msgspec

from model.engagement.history import Mode

CUMULATIVE: Final = 2
"""Mode number of an engagement type whose rows are cumulative counters. The Lua functions use the same number."""
READINGS: Final = 3
"""Mode number of the entry of signals, which has no total."""
MODES: Final[dict[int, Mode]] = {1: "events", CUMULATIVE: "counters"}
"""Mode for each mode number. The number 0, for a type without any rows, is not included."""
_TYPE_FIELDS: Final = 6


class TypeMeta(msgspec.Struct, frozen=True, gc=False):
    """The head's fields for one engagement type, or for reach. ``total`` is the sum of events, or the largest counter value."""

    name: str
    mode: int
    total: float


class RecordMeta(msgspec.Struct, frozen=True):
    """The fields of a head. Times are in microseconds. ``newest_us`` is the newest row's time, or -1 before the first row."""

    published_us: int
    registered_us: int
    version: int
    newest_us: int
    types: list[TypeMeta]


def parse_meta(packed: bytes) -> RecordMeta:
    """Unpack a head. Raise ValueError or a msgspec error if the bytes are not a head."""
    published_us, registered_us, version, newest_us, _, _, *fields = msgspec.msgpack.decode(packed)
    names, modes, totals = fields[::_TYPE_FIELDS], fields[1::_TYPE_FIELDS], fields[2::_TYPE_FIELDS]
    types = [TypeMeta(*values) for values in zip(names, modes, totals, strict=True)]
    return RecordMeta(published_us, int(registered_us), version, newest_us, types)
