"""Which engagement types this service takes, and what their counter columns are called."""

from __future__ import annotations

from collections.abc import Sequence

from model.engagement.types import counter_column


class AcceptedTypes:
    """The types of the served bundle; ``columns`` maps counter column to type."""

    def __init__(self, types: Sequence[str]) -> None:
        self.types = frozenset(types)
        self.columns = {counter_column(kind): kind for kind in types}
        self.types_text = ", ".join(types)
        self.columns_text = ", ".join(self.columns)
