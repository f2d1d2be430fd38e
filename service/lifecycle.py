"""Records whether the service runs normally or is draining before its stop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """State that all components of a stopping service share."""

    draining: bool = False
    """Whether the stop has begun.

    While the service is draining, it reports that it is not ready, closes each connection after the next response, and finishes the
    requests in progress.
    """
