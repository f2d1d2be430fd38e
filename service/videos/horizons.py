"""Parses the horizons of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from model.engagement.bins import SECOND_US
from service.problems import Invalid

DEFAULT_HORIZONS_S: Final = (3600, 6 * 3600, 24 * 3600, 72 * 3600, 7 * 86400, 30 * 86400)


def parse_horizons(values: Sequence[Any] | None, max_horizon_us: int, limit: int) -> tuple[int, ...]:
    """Return horizons in microseconds, ascending and without duplicates.

    If ``values`` is None, return the default horizons that do not exceed the bundle's longest horizon. If all default horizons are longer,
    return only the bundle's longest horizon.
    """
    max_s = max_horizon_us / SECOND_US
    if values is None:
        return tuple(s * SECOND_US for s in DEFAULT_HORIZONS_S if s <= max_s) or (max_horizon_us,)
    if not 1 <= len(values) <= limit:
        raise Invalid("horizons_s", f"{len(values)} horizons", f"1 to {limit} horizons")
    found = set()
    for value in values:
        horizon_us = round(value * SECOND_US) if type(value) in (int, float) and 0 < value <= max_s else 0
        if horizon_us == 0:
            raise Invalid(
                "horizons_s", value, f"seconds, more than 0 and at most {max_s:g}, the bundle's longest horizon"
            )
        found.add(horizon_us)
    return tuple(sorted(found))
