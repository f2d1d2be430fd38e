"""Serving, then draining, then gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """How far the service is on its way to the end."""

    draining: bool = False
    """The stop has begun: not ready any more, each answer is the last of its connection, what is under way is finished."""
