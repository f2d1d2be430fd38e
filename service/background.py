"""Work that goes on beside requests."""

from __future__ import annotations

from typing import Protocol


class Background(Protocol):
    """Started with the application's loop, stopped before the store's connections close."""

    def start(self) -> None:
        """Begin; a running loop is there."""

    async def stop(self) -> None:
        """End in good order; called once, also when ``start`` failed elsewhere."""
