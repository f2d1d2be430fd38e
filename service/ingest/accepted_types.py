"""The engagement types that this service accepts, and the names of their counter columns."""

from __future__ import annotations

from collections.abc import Sequence

from model.engagement.types import counter_column
from service.store.rows.row_fields import SHARED_FIELDS, SIGNALS


class AcceptedTypes:
    """The engagement types of the served bundle. ``columns`` maps the name of each counter column to its type."""

    def __init__(self, types: Sequence[str]) -> None:
        self.types = frozenset(types)
        self.columns = {counter_column(kind): kind for kind in types}
        self.counters_fields = frozenset((*SHARED_FIELDS, SIGNALS, *self.columns))
        """All fields that a counters row may have."""
        self.types_text = ", ".join(types)
        self.columns_text = ", ".join(self.columns)
