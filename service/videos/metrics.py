"""Parses the metrics of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.problems import Invalid


def parse_metrics(values: Sequence[Any] | None, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that are to be forecast, in the given order and without duplicates.

    ``allowed`` are the metrics of the served bundle. The result is empty if only the bundle's first metric is wanted. This is
    the default.
    """
    if values is None:
        return ()
    if not values:
        raise Invalid("metrics", "no metric", f"one or more of {', '.join(allowed)}")
    for value in values:
        if value not in allowed:
            raise Invalid("metrics", value, f"one or more of {', '.join(allowed)}, which the served bundle forecasts")
    found = tuple(dict.fromkeys(values))
    return () if found == tuple(allowed[:1]) else found
