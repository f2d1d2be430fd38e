"""Decodes batches of valid rows at the speed of a compiled decoder.

``BatchDecoder`` accepts a batch only as a whole. If anything about a row is unusual, the decoder returns None. ``RowParser``
then checks each row separately. The decoder and the parser accept the same rows and return the same values. A test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import GenericAlias
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.engagement.history import Mode
from model.engagement.signals import MAX_SIGNALS, MAX_VALUE, is_signal
from model.engagement.types import SIGNAL_MARK
from service.ingest.accepted_types import AcceptedTypes
from service.settings import IngestSettings
from service.store.rows.event_ids import packed_ids
from service.store.rows.row_batch import COUNTERS_ROW, RowBatch
from service.store.rows.row_fields import (
    COUNT,
    COUNTER_MINIMUM,
    EVENT_FIELDS,
    ID,
    MAX_COUNT,
    REACH,
    SHARED_FIELDS,
    SIGNALS,
    TIME,
    TYPE,
    VIDEO_ID,
)
from service.times import now_us

_FLOAT_LIMIT_S: Final = 9e9
"""Limit in seconds since 1970 (the year 2255). Below this limit, a float is precise enough for microseconds."""
_DATE_LENGTH: Final = 10
"""Length in characters of a date without a time of day. Such a date is not accepted as a timestamp."""
_UNUSUAL: Final = (msgspec.DecodeError, UnicodeError, ValueError, OverflowError, RecursionError)


class BatchDecoder:
    """Decodes whole batches, and checks them against the served types, the clock and the limits.

    Each method returns None if anything about a row is unusual.
    """

    def __init__(self, accepted: AcceptedTypes, settings: IngestSettings, clock: Callable[[], int] = now_us) -> None:
        self._skew_us = round(settings.future_skew_s * 1_000_000)
        self._clock = clock
        self._types = tuple(sorted(accepted.types))
        self._codes = {name: code for code, name in enumerate(self._types)}
        # The name of a counter column contains the name of a type, which may not be a valid name in Python.
        attributes = {f"column_{i}": column for i, column in enumerate(accepted.columns)}
        self._columns = frozenset(accepted.columns)
        self._cells = tuple((attribute, accepted.columns[column]) for attribute, column in attributes.items())
        rows = _row_structs(self._types, attributes, settings.max_id_length)
        lists: dict[Mode, Any] = {mode: GenericAlias(list, (row,)) for mode, row in rows.items()}
        body = partial(msgspec.defstruct, "Body", forbid_unknown_fields=True, gc=False)
        self._lists = lists
        self._line = {mode: msgspec.json.Decoder(row) for mode, row in rows.items()}
        self._list = {mode: msgspec.json.Decoder(several) for mode, several in lists.items()}
        self._packed = {mode: msgspec.msgpack.Decoder(row) for mode, row in rows.items()}
        self._body = {mode: msgspec.json.Decoder(body([("rows", several)])) for mode, several in lists.items()}

    def json(self, mode: Mode, body: bytes) -> RowBatch | None:
        """Decode the rows of a JSON body."""
        if body[:100].lstrip()[:1] == b"{":
            return self._batch(mode, lambda: _rows(self._body[mode].decode(body)))
        return self._batch(mode, lambda: self._list[mode].decode(body))

    def lines(self, mode: Mode, lines: Sequence[bytes]) -> RowBatch | None:
        """Decode the rows of NDJSON lines."""
        return self._batch(mode, lambda: list(map(self._line[mode].decode, lines)))

    def packed(self, mode: Mode, rows: Sequence[msgspec.Raw]) -> RowBatch | None:
        """Decode rows in MessagePack."""
        return self._batch(mode, lambda: list(map(self._packed[mode].decode, rows)))

    def items(self, mode: Mode, items: Sequence[Any]) -> RowBatch | None:
        """Decode rows from parsed JSON."""

        def rows() -> list[Any]:
            # The JSON was parsed by a different parser, which accepts text that UTF-8 cannot encode.
            found: list[Any] = msgspec.convert(items, self._lists[mode])
            "".join([row.video_id for row in found]).encode()
            return found

        return self._batch(mode, rows)

    def _batch(self, mode: Mode, decode: Callable[[], list[Any]]) -> RowBatch | None:
        try:
            rows = decode()
            times_us = self._times([row.time for row in rows])
            if times_us is None:
                return None
            ids = [row.id for row in rows]
            batch = RowBatch(
                types=self._types,
                video_ids=[row.video_id for row in rows],
                times_us=times_us,
                type_codes=np.full(len(rows), COUNTERS_ROW, np.uint8),
                ids=None if ids.count(None) == len(ids) else packed_ids(ids),
            )
        except _UNUSUAL:
            return None
        if mode == "counters":
            cells: list[tuple[tuple[str, float], ...]] = [
                tuple(
                    (kind, value) for attribute, kind in self._cells if (value := getattr(row, attribute)) is not None
                )
                for row in rows
            ]
            for i, row in enumerate(rows):
                if row.signals:
                    signals = self._signals(row.signals)
                    if signals is None:
                        return None
                    cells[i] += signals
            batch.cells = cells
            return batch if all(cells) else None
        codes = self._codes
        batch.type_codes = np.frombuffer(bytes([codes[row.type] for row in rows]), np.uint8)
        batch.counts = _numbers([row.count for row in rows], COUNT.default)
        batch.reaches = _numbers([row.reach for row in rows], REACH.default)
        return batch

    def _signals(self, given: dict[str, float | None]) -> tuple[tuple[str, float], ...] | None:
        """Return the cells of a row's signals, or None if a name or value is unusual."""
        if len(given) > MAX_SIGNALS or not all(is_signal(name) and name not in self._columns for name in given):
            return None
        known = [(SIGNAL_MARK + name, float(value)) for name, value in sorted(given.items()) if value is not None]
        return tuple(known) if all(abs(value) <= MAX_VALUE for _, value in known) else None

    def _times(self, values: list[Any]) -> NDArray[np.int64] | None:
        kinds = set(map(type, values))
        if kinds == {str}:
            times = list(map(datetime.fromisoformat, values))
            if min(map(len, values)) <= _DATE_LENGTH or any(time.tzinfo is None for time in times):
                return None
            # The float's error is less than half a microsecond, so rounding below gives the exact time.
            values = [time.timestamp() for time in times]
        elif kinds - {float}:
            return None
        seconds = np.array(values, np.float64)
        if not bool(np.all((seconds >= 0) & (seconds < _FLOAT_LIMIT_S))):
            return None
        times_us: NDArray[np.int64] = np.rint(seconds * 1e6).astype(np.int64)
        return None if len(values) and int(times_us.max()) > self._clock() + self._skew_us else times_us


def _row_structs(types: Sequence[str], columns: dict[str, str], max_id_length: int) -> dict[Mode, Any]:
    """Create the msgspec structs of an event row and of a counters row.

    ``columns`` maps the attributes of the counters row's struct to the names of its counter columns.
    """
    # These types are made at run time, and a type checker cannot follow them.
    identifier: Any = Annotated[str, msgspec.Meta(min_length=1, max_length=max_id_length)]

    def number(minimum: int) -> Any:
        return Annotated[int, msgspec.Meta(ge=minimum, le=MAX_COUNT)] | None

    fields: dict[str, tuple[Any, ...]] = {
        VIDEO_ID: (identifier,),
        TIME: (float | str,),
        ID: (identifier | None, None),
        TYPE: (Literal[tuple(types)],),
        COUNT.name: (number(COUNT.minimum), None),
        REACH.name: (number(REACH.minimum), None),
    }
    struct = partial(msgspec.defstruct, forbid_unknown_fields=True, gc=False)
    event = [(name, *fields[name]) for name in EVENT_FIELDS]
    shared = [(name, *fields[name]) for name in SHARED_FIELDS]
    shared.append((SIGNALS, dict[str, float | None] | None, None))
    counters = [*shared, *((attribute, number(COUNTER_MINIMUM), None) for attribute in columns)]
    return {"events": struct("Event", event), "counters": struct("Counters", counters, rename=columns)}


def _rows(body: Any) -> list[Any]:
    rows: list[Any] = body.rows
    return rows


def _numbers(values: list[int | None], default: int) -> NDArray[np.int64] | None:
    """Convert numbers to a column of a batch. Return None if all of them are the default."""
    distinct = set(values)
    if distinct <= {None, default}:
        return None
    return np.array(values if None not in distinct else [default if v is None else v for v in values], np.int64)
