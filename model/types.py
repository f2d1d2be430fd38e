"""Names of engagement types and metrics.

Events carry a singular type ("view"); counters carry a plural column ("views"). A metric is a counter column,
an event type, or ``total``, the sum over all types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from model.errors import DataError

ENGAGEMENT_TYPES: Final = ("view", "like", "comment", "share")
COUNTER_COLUMNS: Final[Mapping[str, str]] = {"views": "view", "likes": "like", "comments": "comment", "shares": "share"}
"""Counter column to event type."""
TOTAL: Final = "total"
REACH: Final = "reach"
"""The audience of the accounts that acted: a column of events, and no engagement type."""


def metric_types(metric: str, types: tuple[str, ...]) -> tuple[int, ...]:
    """Indices into ``types`` whose counts add up to ``metric``.

    Raises:
        DataError: the metric is no type of these.
    """
    if metric == TOTAL:
        return tuple(range(len(types)))
    kind = COUNTER_COLUMNS.get(metric, metric)
    if kind not in types:
        allowed = sorted({TOTAL, *types, *(c for c, t in COUNTER_COLUMNS.items() if t in types)})
        raise DataError(f"metric: {metric!r} is not observed here; allowed: {', '.join(allowed)}")
    return (types.index(kind),)
