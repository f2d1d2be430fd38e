"""Good rows at the speed of a compiled decoder.

``BatchDecoder`` takes what it is given only as a whole: wherever anything is unusual about any row, it answers None, and ``RowParser``
looks at each row with care. Both accept the same rows and read them the same; a test compares them.
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
from service.ingest.accepted_types import AcceptedTypes
from service.settings import IngestSettings
from service.store.event_ids import packed_ids
from service.store.row import MAX_COUNT
from service.store.row_batch import COUNTERS, RowBatch
from service.times import now_us

_FLOAT_LIMIT_S: Final = 9e9
"""Below it (the year 2255), microseconds are exact in a float."""
_DATE: Final = 10
"""Characters of a date without a time of day, which is no time."""
_UNUSUAL: Final = (msgspec.DecodeError, UnicodeError, ValueError, OverflowError, RecursionError)


class BatchDecoder:
    """Decodes whole batches for the served types, the clock and the limits."""

    def __init__(self, catalog: AcceptedTypes, settings: IngestSettings, clock: Callable[[], int] = now_us) -> None:
        self._skew_us = round(settings.future_skew_s * 1_000_000)
        self._clock = clock
        self._names = tuple(sorted(catalog.types))
        self._codes = {name: code for code, name in enumerate(self._names)}
        # Columns are named after types, which need not be names in Python.
        columns = {f"column_{place}": name for place, name in enumerate(catalog.columns)}
        self._cells = tuple((field, catalog.columns[name]) for field, name in columns.items())
        # Types made at run time, which a type checker cannot follow.
        identifier: Any = Annotated[str, msgspec.Meta(min_length=1, max_length=settings.max_id_length)]
        count: Any = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)] | None
        positive: Any = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)] | None
        common: list[Any] = [("video_id", identifier), ("time", float | str)]
        new = partial(msgspec.defstruct, forbid_unknown_fields=True, gc=False)
        last = ("id", identifier | None, None)
        event = [*common, ("type", Literal[self._names]), ("count", positive, None), ("reach", count, None), last]
        counters = [*common, last, *((field, count, None) for field in columns)]
        row: dict[Mode, Any] = {"events": new("Event", event), "counters": new("Counters", counters, rename=columns)}
        self._line = {mode: msgspec.json.Decoder(kind) for mode, kind in row.items()}
        self._rows: dict[Mode, Any] = {mode: GenericAlias(list, (kind,)) for mode, kind in row.items()}
        self._list = {mode: msgspec.json.Decoder(rows) for mode, rows in self._rows.items()}
        self._packed = {mode: msgspec.msgpack.Decoder(kind) for mode, kind in row.items()}
        self._body = {mode: msgspec.json.Decoder(new("Body", [("rows", rows)])) for mode, rows in self._rows.items()}

    def json(self, mode: Mode, body: bytes) -> RowBatch | None:
        """The rows of a JSON body."""
        if body[:100].lstrip()[:1] == b"{":
            return self._columns(mode, lambda: _rows(self._body[mode].decode(body)))
        return self._columns(mode, lambda: self._list[mode].decode(body))

    def lines(self, mode: Mode, lines: Sequence[bytes]) -> RowBatch | None:
        """One row a line."""
        return self._columns(mode, lambda: list(map(self._line[mode].decode, lines)))

    def packed(self, mode: Mode, rows: Sequence[msgspec.Raw]) -> RowBatch | None:
        """Rows in MessagePack."""
        return self._columns(mode, lambda: list(map(self._packed[mode].decode, rows)))

    def items(self, mode: Mode, items: Sequence[Any]) -> RowBatch | None:
        """Rows that are parsed JSON already."""

        def rows() -> list[Any]:
            # Parsed elsewhere, so text may hold what UTF-8 cannot.
            found: list[Any] = msgspec.convert(items, self._rows[mode])
            "".join([row.video_id for row in found]).encode()
            return found

        return self._columns(mode, rows)

    def _columns(self, mode: Mode, decode: Callable[[], list[Any]]) -> RowBatch | None:
        try:
            rows = decode()
            times_us = self._times([row.time for row in rows])
            if times_us is None:
                return None
            ids = [row.id for row in rows]
            columns = RowBatch(
                names=self._names,
                video_ids=[row.video_id for row in rows],
                times_us=times_us,
                kinds=np.full(len(rows), COUNTERS, np.uint8),
                ids=None if ids.count(None) == len(ids) else packed_ids(ids),
            )
        except _UNUSUAL:
            return None
        if mode == "counters":
            columns.cells = [
                tuple((kind, value) for name, kind in self._cells if (value := getattr(row, name)) is not None)
                for row in rows
            ]
            return columns if all(columns.cells) else None
        codes = self._codes
        columns.kinds = np.frombuffer(bytes([codes[row.type] for row in rows]), np.uint8)
        columns.counts = _amounts([row.count for row in rows], 1)
        columns.reaches = _amounts([row.reach for row in rows], 0)
        return columns

    def _times(self, values: list[Any]) -> NDArray[np.int64] | None:
        kinds = set(map(type, values))
        if kinds == {str}:
            moments = list(map(datetime.fromisoformat, values))
            if min(map(len, values)) <= _DATE or any(moment.tzinfo is None for moment in moments):
                return None
            # Off by less than half a microsecond, so rounding gives the very one.
            values = [moment.timestamp() for moment in moments]
        elif kinds - {float}:
            return None
        seconds = np.array(values, np.float64)
        if not bool(np.all((seconds >= 0) & (seconds < _FLOAT_LIMIT_S))):
            return None
        times_us: NDArray[np.int64] = np.rint(seconds * 1e6).astype(np.int64)
        return None if len(values) and int(times_us.max()) > self._clock() + self._skew_us else times_us


def _rows(body: Any) -> list[Any]:
    rows: list[Any] = body.rows
    return rows


def _amounts(values: list[int | None], default: int) -> NDArray[np.int64] | None:
    distinct = set(values)
    if distinct <= {None, default}:
        return None
    return np.array(values if None not in distinct else [default if v is None else v for v in values], np.int64)
