"""Places for forecasts that are pushed: they take what is left of the model, never most of it."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final

REST: Final = 1.0
"""Seconds of rest after each second in which forecasts were pushed, so that whoever asks for one is not behind them."""
_AT_ONCE_S: Final = 0.05
"""Seconds of work after which the rest is taken."""


class PacedSlots:
    """At most ``places`` forecasts under way; after ``_AT_ONCE_S`` of work, none begins for as long."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._inside = 0
        self._since_s = self._worked_s = self._until_s = 0.0

    async def __aenter__(self) -> None:
        """Wait for a place, and for the end of the rest."""
        await self._places.acquire()
        try:
            while (left_s := self._until_s - time.monotonic()) > 0:
                await asyncio.sleep(left_s)
        except BaseException:
            self._places.release()
            raise
        if not self._inside:
            self._since_s = time.monotonic()
        self._inside += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back."""
        self._inside -= 1
        self._places.release()
        now_s = time.monotonic()
        self._worked_s += now_s - self._since_s
        self._since_s = now_s
        if self._worked_s >= _AT_ONCE_S:
            self._until_s = now_s + REST * self._worked_s
            self._worked_s = 0.0
