"""Names of engagement types and metrics.

An event has a singular type ("view"). A counter has a column with a plural name ("views"). A metric is a counter
column, an event type, or ``total``, which is the sum over all types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from model.errors import DataError

ENGAGEMENT_TYPES: Final = ("view", "like", "comment", "share")
COUNTER_COLUMNS: Final[Mapping[str, str]] = {"views": "view", "likes": "like", "comments": "comment", "shares": "share"}
"""Maps a counter column to its event type."""
TOTAL: Final = "total"
REACH: Final = "reach"
"""Name of the events' column with the audience of the accounts that acted. This name is not an engagement type."""
SIGNALS: Final = "signals"
"""Name under which the store keeps readings that are not engagement. This name is not an engagement type."""
SIGNAL_MARK: Final = "~"
"""First character of a signal's name where signals and engagement types stand together. No engagement type begins with it."""

RESERVED: Final = (REACH, TOTAL, SIGNALS)
"""Names with a meaning of their own. No engagement type may have one of these names."""


def check_types(types: Iterable[str]) -> None:
    """Raise DataError if an engagement type has a name that is used for something else.

    Data sets, bundles and the store all follow this rule.

    Raises:
        DataError: a type has a reserved name, or the name of another type's counter column.
    """
    known = set(types)
    for kind in sorted(known):
        if kind.startswith(SIGNAL_MARK):
            raise DataError(f"type: {kind!r} begins with {SIGNAL_MARK!r}; give it another name")
        if kind in RESERVED:
            raise DataError(
                f"type: {kind!r} is a reserved name ({REACH}: the audience of an event; {TOTAL}: the sum over all types;"
                f" {SIGNALS}: readings that are not engagement) and cannot be an engagement type; give it another name"
            )
        if COUNTER_COLUMNS.get(kind) in known:
            raise DataError(
                f"type: {kind!r} is the counter column of the type {COUNTER_COLUMNS[kind]!r}, which is also present; keep one of them"
            )


def metric_types(metric: str, types: tuple[str, ...]) -> tuple[int, ...]:
    """Return the indices into ``types`` of the types whose counts add up to ``metric``.

    Raises:
        DataError: ``types`` lacks the type of the metric.
    """
    if metric == TOTAL:
        return tuple(range(len(types)))
    kind = metric if metric in types else COUNTER_COLUMNS.get(metric, metric)
    if kind not in types:
        allowed = sorted({TOTAL, *types, *(c for c, t in COUNTER_COLUMNS.items() if t in types)})
        raise DataError(f"metric: {metric!r} is not observed here; allowed: {', '.join(allowed)}")
    return (types.index(kind),)


_COLUMN_OF = {kind: column for column, kind in COUNTER_COLUMNS.items()}


def counter_column(kind: str) -> str:
    """Return the name of an engagement type's counter column, which is its plural."""
    return _COLUMN_OF.get(kind, kind + "s")
