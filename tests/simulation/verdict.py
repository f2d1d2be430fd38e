"""How the simulation says no."""

from __future__ import annotations


class Wrong(Exception):
    """The service did what it must not do."""


def demand(condition: object, *told: object) -> None:
    """Raise Wrong with what is told, unless the condition holds."""
    if not condition:
        raise Wrong(" ".join(map(str, told)))
