"""Whether the service is serving or draining."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """The state that all parts of a stopping service share."""

    draining: bool = False
    """The stop has begun: the service is not ready, each response is the last of its connection, and requests in progress are finished."""
