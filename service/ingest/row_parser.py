"""From parsed JSON to rows: the rules for events and counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from model.engagement.history import Mode
from service.ingest.accepted_types import AcceptedTypes
from service.problems import Invalid, did_you_mean, shown
from service.settings import IngestSettings
from service.store.row import MAX_COUNT, Rejection, Row
from service.strict_json import BrokenLine
from service.times import iso, now_us, parse_time

_EVENT_FIELDS: Final = frozenset(("video_id", "time", "type", "count", "reach", "id"))
_ONLY_EVENTS: Final = _EVENT_FIELDS - {"video_id", "time", "id"}
"""Fields that tell an event from a snapshot of counters."""
IGNORED_A_ROW: Final = 32
"""Unknown counters of one row that are named, at most."""
_EVENT_ALLOWED: Final = "the fields video_id, time, type, count, reach, id"


def parse_identifier(field: str, value: object, longest: int) -> str:
    """A video id or event id: any text that UTF-8 can hold, 1 to ``longest`` characters."""
    if isinstance(value, str) and 0 < len(value) <= longest:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise Invalid(field, "missing" if value is None else value, f"text of 1 to {longest} characters")


def _parse_count(field: str, value: object, least: int) -> int:
    # bool is an int in Python, and is refused; 3.0 is a whole number in JSON, and is taken.
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and least <= value <= MAX_COUNT:
        return value
    as_text = ", as a JSON number and not as text" if isinstance(value, str) else ""
    raise Invalid(field, value, f"a whole number from {least} to {MAX_COUNT}{as_text}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) or (isinstance(value, str) and value.isascii() and value.isdecimal())


@dataclass(slots=True)
class Parsed:
    """Rows, why others were refused (``unlisted``: how many more were), and how many had each counter that the bundle does not know."""

    rows: list[Row] = field(default_factory=list)
    refused: list[Rejection] = field(default_factory=list)
    unlisted: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


class RowParser:
    """Validates rows against the served types, the clock and the limits."""

    def __init__(self, catalog: AcceptedTypes, settings: IngestSettings, clock: Callable[[], int] = now_us) -> None:
        self._catalog = catalog
        self._longest = settings.max_id_length
        self._skew_us = round(settings.future_skew_s * 1_000_000)
        self._clock = clock
        self._counter_fields = frozenset(("video_id", "time", "id", *catalog.columns))

    def parse(
        self,
        mode: Mode,
        items: Sequence[Any],
        video_id: str | None = None,
        *,
        first: int = 0,
        into: Parsed | None = None,
        listed: bool = True,
    ) -> Parsed:
        """Rows and refusals, added to ``into`` where given; where not ``listed``, refused rows are counted only.

        ``video_id`` is what every row is for, where the request has said so; ``first`` is the place of the first item.
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
                if not listed:
                    parsed.unlisted += 1
                    continue
                parsed.refused.append(Rejection(mode, index, "invalid", problem.field, problem.value, problem.allowed))
        return parsed

    def check_future(self, field: str, time_us: int) -> int:
        """``time_us`` itself, unless it lies further ahead of the clock than the skew allows."""
        self._check_future(field, time_us, self._clock() + self._skew_us)
        return time_us

    def _event(
        self, index: int, item: dict[str, Any], video_id: str | None, latest_us: int, ignored: Counter[str]
    ) -> Row:
        if not item.keys() <= _EVENT_FIELDS:
            unknown = next(name for name in item if name not in _EVENT_FIELDS)
            raise Invalid(unknown, item[unknown], _EVENT_ALLOWED + did_you_mean(unknown, _EVENT_FIELDS))
        kind = item.get("type")
        if not isinstance(kind, str) or kind not in self._catalog.types:
            raise Invalid("type", "missing" if kind is None else kind, f"one of {self._catalog.types_text}")
        count = item.get("count")
        reach = item.get("reach")
        return Row(
            index=index,
            video_id=self._video_id(item, video_id),
            time_us=self._time(item, latest_us),
            mode="events",
            cells=((kind, 1 if count is None else _parse_count("count", count, 1)),),
            reach=0 if reach is None else _parse_count("reach", reach, 0),
            id=self._event_id(item),
        )

    def _counters(
        self, index: int, item: dict[str, Any], video_id: str | None, latest_us: int, ignored: Counter[str]
    ) -> Row:
        unknown: Sequence[str] = ()
        if not item.keys() <= self._counter_fields:
            unknown = [name for name, value in item.items() if name not in self._counter_fields and value is not None]
            for name in unknown:
                if name in _ONLY_EVENTS:
                    raise Invalid(name, item[name], f"in events only; counters have {self._catalog.columns_text}")
                if not _is_number(item[name]):
                    # No counter that the bundle does not know, but something else.
                    allowed = (
                        f"the fields video_id, time, id, {self._catalog.columns_text}, and numbers of other counters"
                    )
                    raise Invalid(name, item[name], allowed + did_you_mean(name, self._counter_fields))
        cells = tuple(
            (kind, _parse_count(column, item[column], 0))
            for column, kind in self._catalog.columns.items()
            if item.get(column) is not None
        )
        if not cells:
            allowed = f"at least one of {self._catalog.columns_text}"
            known = self._catalog.columns
            for name in unknown:
                raise Invalid(name, item[name], allowed + did_you_mean(name, known))
            raise Invalid("counters", "missing", allowed)
        row = Row(
            index=index,
            video_id=self._video_id(item, video_id),
            time_us=self._time(item, latest_us),
            mode="counters",
            cells=cells,
            id=self._event_id(item),
        )
        for name in unknown[:IGNORED_A_ROW]:
            ignored[shown(name)] += 1
        return row

    def _video_id(self, item: dict[str, Any], expected: str | None) -> str:
        value = item.get("video_id")
        if expected is None:
            return parse_identifier("video_id", value, self._longest)
        if value is not None and value != expected:
            raise Invalid("video_id", value, f"the request's own video, {expected!r}, or nothing")
        return expected

    def _event_id(self, item: dict[str, Any]) -> str | None:
        value = item.get("id")
        return None if value is None else parse_identifier("id", value, self._longest)

    def _time(self, item: dict[str, Any], latest_us: int) -> int:
        value = item.get("time")
        time_us = parse_time("time", "missing" if value is None else value)
        self._check_future("time", time_us, latest_us)
        return time_us

    def _check_future(self, field: str, time_us: int, latest_us: int) -> None:
        if time_us > latest_us:
            skew_s = self._skew_us / 1_000_000
            raise Invalid(field, iso(time_us), f"a time at most {skew_s:g} s ahead of the service's clock")
