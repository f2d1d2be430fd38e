"""The name and scopes of one API key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """A known API key. Its name is the first digits of its SHA-256."""

    name: str
    scopes: frozenset[str]
