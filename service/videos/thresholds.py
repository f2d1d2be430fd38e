"""Parses the thresholds of a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from service.problems import Invalid

MAX_THRESHOLDS: Final = 16
"""Maximum number of thresholds in one request."""


def parse_thresholds(values: Sequence[Any] | None) -> tuple[float, ...]:
    """Return thresholds as counts, ascending and without duplicates. If ``values`` is None, return none."""
    if values is None:
        return ()
    if not 1 <= len(values) <= MAX_THRESHOLDS:
        raise Invalid("thresholds", f"{len(values)} thresholds", f"1 to {MAX_THRESHOLDS} thresholds")
    found = set()
    for value in values:
        count = _count(value)
        if count is None:
            raise Invalid("thresholds", value, "counts: finite numbers above 0")
        found.add(count)
    return tuple(sorted(found))


def _count(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        count = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return count if math.isfinite(count) and count > 0 else None
