"""The packed head of a video's record (its key ``meta``), as ``store.lua`` writes it."""

from __future__ import annotations

from typing import Final

import msgspec

from model.engagement.history import Mode

CUMULATIVE: Final = 2
"""The mode number of a type that counters feed; ``store.lua`` has the same number."""
MODES: Final[dict[int, Mode]] = {1: "events", CUMULATIVE: "counters"}
"""By mode number; 0 is a type that nothing has fed yet."""
_TYPE_FIELDS: Final = 6


class TypeMeta(msgspec.Struct, frozen=True, gc=False):
    """What the head says about one engagement type, or about reach; ``total`` is a sum of events or the largest counter."""

    name: str
    mode: int
    total: float


class RecordMeta(msgspec.Struct, frozen=True):
    """Times in us, ``newest_us`` -1 before the first row."""

    published_us: int
    registered_us: int
    version: int
    newest_us: int
    types: list[TypeMeta]


def parse_meta(packed: bytes) -> RecordMeta:
    """Unpack a head; raises ValueError or a msgspec error where it is not one."""
    published_us, registered_us, version, newest_us, _, _, *fields = msgspec.msgpack.decode(packed)
    names, modes, totals = fields[::_TYPE_FIELDS], fields[1::_TYPE_FIELDS], fields[2::_TYPE_FIELDS]
    types = [TypeMeta(*values) for values in zip(names, modes, totals, strict=True)]
    return RecordMeta(published_us, int(registered_us), version, newest_us, types)
