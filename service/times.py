"""Parses and formats times in requests and responses.

In requests and responses, a time is ISO 8601 with a zone, or seconds since 1970 UTC. Inside the service, a time is in microseconds since
1970 UTC.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from service.problems import Invalid

ALLOWED: Final = "an ISO 8601 time with a zone, or a number of seconds since 1970 UTC"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST_S: Final = 253_402_300_799
"""Last second of the year 9999, in seconds since 1970 UTC."""


def now_us() -> int:
    """Return the wall clock's time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def parse_time(field: str, value: object) -> int:
    """Return a time in microseconds since 1970 UTC. Raises Invalid, which names ``field``."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
            if parsed.tzinfo is None or len(value) <= 10:
                raise ValueError
            result = (parsed - _EPOCH) // _MICROSECOND
        except (ValueError, OverflowError):
            as_text = "; a number of seconds must be a JSON number, not text" if _is_number(value) else ""
            raise Invalid(field, value, ALLOWED + as_text) from None
    elif isinstance(value, int | float) and not isinstance(value, bool) and -_LAST_S <= value <= _LAST_S:
        # The range excludes NaN, infinities and values that would overflow.
        result = round(value * 1_000_000)
    else:
        raise Invalid(field, value, ALLOWED)
    if result < 0:
        raise Invalid(field, value, "a time in 1970 or later")
    return result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def iso(us: int) -> str:
    """Format a time as ISO 8601 in UTC. Fractions of a second are shown only if there are any."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")
