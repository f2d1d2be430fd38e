"""Times in requests and responses (ISO 8601 with a zone, or seconds since 1970 UTC); the service uses microseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from service.problems import Invalid

ALLOWED: Final = "an ISO 8601 time with a zone, or a number of seconds since 1970 UTC"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST_S: Final = 253_402_300_799
"""The end of the year 9999."""


def now_us() -> int:
    """The wall clock, microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def parse_time(field: str, value: object) -> int:
    """Microseconds since 1970 UTC; raises Invalid naming ``field``."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
            if parsed.tzinfo is None or len(value) <= 10:
                raise ValueError
            result = (parsed - _EPOCH) // _MICROSECOND
        except (ValueError, OverflowError):
            as_text = "; a number of seconds is a JSON number and not text" if _is_number(value) else ""
            raise Invalid(field, value, ALLOWED + as_text) from None
    elif isinstance(value, int | float) and not isinstance(value, bool) and -_LAST_S <= value <= _LAST_S:
        # NaN, infinities and values that would overflow are outside the range.
        result = round(value * 1_000_000)
    else:
        raise Invalid(field, value, ALLOWED)
    if result < 0:
        raise Invalid(field, value, "a time from 1970 on")
    return result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def iso(us: int) -> str:
    """A time as ISO 8601 in UTC; fractions of a second only if there are any."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")
