"""One API key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """A known key: its name (the first digits of its SHA-256), and its scopes."""

    name: str
    scopes: frozenset[str]
