"""How the simulation reports a fault."""

from __future__ import annotations


class Wrong(Exception):
    """The service did something that it must not do."""


def demand(condition: object, *details: object) -> None:
    """Raise Wrong with the details, unless the condition holds."""
    if not condition:
        raise Wrong(" ".join(map(str, details)))
