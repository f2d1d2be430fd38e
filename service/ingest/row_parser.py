"""Converts parsed JSON to rows, one by one. For each refused row, the reason is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from model.engagement.history import Mode
from model.engagement.signals import ALLOWED, ALLOWED_NAME, MAX_SIGNALS, MAX_VALUE, is_signal
from model.engagement.types import SIGNAL_MARK
from service.ingest.accepted_types import AcceptedTypes
from service.problems import Invalid, did_you_mean, shown
from service.settings import IngestSettings
from service.store.rows.outcome import Rejection
from service.store.rows.row import InputRow
from service.store.rows.row_fields import (
    COUNT,
    COUNTER_MINIMUM,
    EVENT_FIELDS,
    EVENT_FIELDS_TEXT,
    ID,
    MAX_COUNT,
    ONLY_EVENT_FIELDS,
    REACH,
    SHARED_FIELDS,
    SIGNALS,
    TIME,
    TYPE,
    VIDEO_ID,
    NumberField,
)
from service.strict_json import BrokenLine
from service.times import iso, now_us, parse_time

IGNORED_PER_ROW: Final = 32
"""Maximum number of unknown counters of one row that are counted by name."""
_EVENT_FIELDS: Final = frozenset(EVENT_FIELDS)


def parse_identifier(field: str, value: object, max_length: int) -> str:
    """Check a video id or event id, and return it. Raise Invalid if it is not valid.

    An id is any text of 1 to ``max_length`` characters that UTF-8 can encode.
    """
    if isinstance(value, str) and 0 < len(value) <= max_length:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise Invalid(field, "missing" if value is None else value, f"text of 1 to {max_length} characters")


def _parse_number(name: str, value: object, minimum: int) -> int:
    # A bool is an int in Python, but it is refused here. 3.0 is a whole number in JSON, so it is accepted.
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and minimum <= value <= MAX_COUNT:
        return value
    as_text = ", as a JSON number and not as text" if isinstance(value, str) else ""
    raise Invalid(name, value, f"a whole number from {minimum} to {MAX_COUNT}{as_text}")


def _parse_field(field: NumberField, item: dict[str, Any]) -> int:
    value = item.get(field.name)
    return field.default if value is None else _parse_number(field.name, value, field.minimum)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) or (isinstance(value, str) and value.isascii() and value.isdecimal())


@dataclass(slots=True)
class Parsed:
    """Valid rows, and the reasons why other rows were refused.

    ``unlisted``: number of refused rows that are not in ``refused``.
    ``ignored``: for each counter that the bundle does not know, the number of rows with this counter.
    """

    rows: list[InputRow] = field(default_factory=list)
    refused: list[Rejection] = field(default_factory=list)
    unlisted: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


class RowParser:
    """Validates rows against the served types, the clock and the limits."""

    def __init__(self, accepted: AcceptedTypes, settings: IngestSettings, clock: Callable[[], int] = now_us) -> None:
        self._accepted = accepted
        self._max_id_length = settings.max_id_length
        self._skew_us = round(settings.future_skew_s * 1_000_000)
        self._clock = clock

    def parse(
        self,
        mode: Mode,
        items: Sequence[Any],
        video_id: str | None = None,
        *,
        first: int = 0,
        into: Parsed | None = None,
        list_rejections: bool = True,
    ) -> Parsed:
        """Validate rows, and return the result.

        Args:
            mode: whether the rows are events or counters.
            items: the rows as parsed JSON.
            video_id: the video of all rows, if the request names one. If None, each row names its own video.
            first: the position of the first item in the request.
            into: an earlier result. The new rows and refusals are added to it.
            list_rejections: if False, refused rows are only counted.
        """
        parsed = Parsed() if into is None else into
        latest_us = self._clock() + self._skew_us
        parse = self._event if mode == "events" else self._counters
        for index, item in enumerate(items, first):
            try:
                if not isinstance(item, dict):
                    raise Invalid("line" if isinstance(item, BrokenLine) else "row", item, "a JSON object")
                parsed.rows.append(parse(index, item, video_id, latest_us, parsed.ignored))
            except Invalid as problem:
                if not list_rejections:
                    parsed.unlisted += 1
                    continue
                parsed.refused.append(Rejection(mode, index, "invalid", problem.field, problem.value, problem.allowed))
        return parsed

    def check_future(self, field: str, time_us: int) -> int:
        """Return ``time_us``. Raise Invalid if this time is more than ``future_skew_s`` ahead of the clock."""
        self._check_future(field, time_us, self._clock() + self._skew_us)
        return time_us

    def _event(
        self, index: int, item: dict[str, Any], video_id: str | None, latest_us: int, ignored: Counter[str]
    ) -> InputRow:
        if not item.keys() <= _EVENT_FIELDS:
            unknown = next(name for name in item if name not in _EVENT_FIELDS)
            raise Invalid(unknown, item[unknown], EVENT_FIELDS_TEXT + did_you_mean(unknown, _EVENT_FIELDS))
        kind = item.get(TYPE)
        if not isinstance(kind, str) or kind not in self._accepted.types:
            raise Invalid(TYPE, "missing" if kind is None else kind, f"one of {self._accepted.types_text}")
        return InputRow(
            index=index,
            video_id=self._video_id(item, video_id),
            time_us=self._time(item, latest_us),
            mode="events",
            cells=((kind, _parse_field(COUNT, item)),),
            reach=_parse_field(REACH, item),
            id=self._event_id(item),
        )

    def _counters(
        self, index: int, item: dict[str, Any], video_id: str | None, latest_us: int, ignored: Counter[str]
    ) -> InputRow:
        unknown = self._unknown_counters(item)
        columns = self._accepted.columns
        cells: tuple[tuple[str, float], ...] = tuple(
            (kind, _parse_number(column, item[column], COUNTER_MINIMUM))
            for column, kind in columns.items()
            if item.get(column) is not None
        )
        cells += self._signals(item.get(SIGNALS))
        if not cells:
            allowed = f"at least one of {self._accepted.columns_text}, or {SIGNALS}"
            for name in unknown:
                raise Invalid(name, item[name], allowed + did_you_mean(name, columns))
            raise Invalid("counters", "missing", allowed)
        row = InputRow(
            index=index,
            video_id=self._video_id(item, video_id),
            time_us=self._time(item, latest_us),
            mode="counters",
            cells=cells,
            id=self._event_id(item),
        )
        for name in unknown[:IGNORED_PER_ROW]:
            ignored[shown(name)] += 1
        return row

    def _signals(self, given: object) -> tuple[tuple[str, float], ...]:
        """Return the cells of a row's signals, sorted by name. A signal without a value is left out."""
        if given is None:
            return ()
        if not isinstance(given, dict) or len(given) > MAX_SIGNALS:
            found = given if not isinstance(given, dict) else f"{len(given)} signals"
            raise Invalid(SIGNALS, found, f"an object with at most {MAX_SIGNALS} signals")
        cells = []
        for name, value in sorted(given.items()):
            if not is_signal(name) or name in self._accepted.columns:
                raise Invalid(SIGNALS, name, f"{ALLOWED_NAME}, and other than {self._accepted.columns_text}")
            if value is None:
                continue
            if type(value) not in (int, float) or not abs(value) <= MAX_VALUE:
                raise Invalid(f"{SIGNALS}.{name}", value, ALLOWED)
            cells.append((SIGNAL_MARK + name, float(value)))
        return tuple(cells)

    def _unknown_counters(self, item: dict[str, Any]) -> Sequence[str]:
        """Return the names of counters that the bundle does not know. Raise Invalid for any other unknown field."""
        known = self._accepted.counters_fields
        if item.keys() <= known:
            return ()
        unknown = [name for name, value in item.items() if name not in known and value is not None]
        for name in unknown:
            if name in ONLY_EVENT_FIELDS:
                raise Invalid(name, item[name], f"for events only; counters have {self._accepted.columns_text}")
            if not _is_number(item[name]):
                fields = ", ".join((*SHARED_FIELDS, self._accepted.columns_text))
                allowed = f"the fields {fields}, and numbers of other counters"
                raise Invalid(name, item[name], allowed + did_you_mean(name, known))
        return unknown

    def _video_id(self, item: dict[str, Any], expected: str | None) -> str:
        value = item.get(VIDEO_ID)
        if expected is None:
            return parse_identifier(VIDEO_ID, value, self._max_id_length)
        if value is not None and value != expected:
            raise Invalid(VIDEO_ID, value, f"{expected!r}, the video of the request, or no value")
        return expected

    def _event_id(self, item: dict[str, Any]) -> str | None:
        value = item.get(ID)
        return None if value is None else parse_identifier(ID, value, self._max_id_length)

    def _time(self, item: dict[str, Any], latest_us: int) -> int:
        value = item.get(TIME)
        time_us = parse_time(TIME, "missing" if value is None else value)
        self._check_future(TIME, time_us, latest_us)
        return time_us

    def _check_future(self, field: str, time_us: int, latest_us: int) -> None:
        if time_us > latest_us:
            skew_s = self._skew_us / 1_000_000
            raise Invalid(field, iso(time_us), f"a time at most {skew_s:g} s ahead of the service's clock")
