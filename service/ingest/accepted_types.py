"""Which engagement types this service takes, and what their counter columns are called."""

from __future__ import annotations

from collections.abc import Sequence

from model.engagement.types import COUNTER_COLUMNS

_COLUMN_OF = {kind: column for column, kind in COUNTER_COLUMNS.items()}


def column_of(kind: str) -> str:
    """The counter column of an engagement type: its plural."""
    return _COLUMN_OF.get(kind, kind + "s")


class Catalog:
    """The types of the served bundle; ``columns`` maps counter column to type."""

    def __init__(self, types: Sequence[str]) -> None:
        self.types = frozenset(types)
        self.columns = {column_of(kind): kind for kind in types}
        self.types_text = ", ".join(types)
        self.columns_text = ", ".join(self.columns)
