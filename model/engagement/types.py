"""Names of engagement types and metrics.

Events carry a singular type ("view"); counters carry a plural column ("views"). A metric is a counter column,
an event type, or ``total``, the sum over all types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from model.errors import DataError

ENGAGEMENT_TYPES: Final = ("view", "like", "comment", "share")
COUNTER_COLUMNS: Final[Mapping[str, str]] = {"views": "view", "likes": "like", "comments": "comment", "shares": "share"}
"""Counter column to event type."""
TOTAL: Final = "total"
REACH: Final = "reach"
"""The audience of the accounts that acted: a column of events, and no engagement type."""

RESERVED: Final = (REACH, TOTAL)
"""Names that mean something else to us."""


def check_types(types: Iterable[str]) -> None:
    """Refuse engagement types whose name has another meaning: the one rule, for data, bundles and the store alike.

    Raises:
        DataError: a type is called like a word of ours, or like the counter column of another type.
    """
    known = set(types)
    for kind in sorted(known):
        if kind in RESERVED:
            raise DataError(
                f"type: {kind!r} is a word of our own ({REACH}: the audience of an event; {TOTAL}: the sum over all types) and"
                " cannot be an engagement type; give it another name"
            )
        if COUNTER_COLUMNS.get(kind) in known:
            raise DataError(
                f"type: {kind!r} is the counter column of the type {COUNTER_COLUMNS[kind]!r}, which is there too; keep one of them"
            )


def metric_types(metric: str, types: tuple[str, ...]) -> tuple[int, ...]:
    """Indices into ``types`` whose counts add up to ``metric``.

    Raises:
        DataError: the metric is no type of these.
    """
    if metric == TOTAL:
        return tuple(range(len(types)))
    kind = metric if metric in types else COUNTER_COLUMNS.get(metric, metric)
    if kind not in types:
        allowed = sorted({TOTAL, *types, *(c for c, t in COUNTER_COLUMNS.items() if t in types)})
        raise DataError(f"metric: {metric!r} is not observed here; allowed: {', '.join(allowed)}")
    return (types.index(kind),)


_COLUMN_OF = {kind: column for column, kind in COUNTER_COLUMNS.items()}


def column_of(kind: str) -> str:
    """The counter column of an engagement type: its plural."""
    return _COLUMN_OF.get(kind, kind + "s")
