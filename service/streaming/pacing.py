"""Limits the forecasts for subscribers, so that most of the model's time is left for requests."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final

REST: Final = 1.0
"""Pause in seconds per second of work. The pause keeps requests from being queued behind forecasts for subscribers."""
_WORK_S: Final = 0.05
"""Seconds of work after which a pause begins."""


class PacedSlots:
    """A semaphore of ``slots`` slots with pauses.

    Once slots have been in use for a total of ``_WORK_S`` seconds, a pause begins in which no slot is given. The pause is ``REST``
    times as long as that work.
    """

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._used = 0
        self._since_s = self._worked_s = self._rest_until_s = 0.0

    async def __aenter__(self) -> None:
        """Wait for a slot, and for the end of the pause."""
        await self._slots.acquire()
        try:
            while (left_s := self._rest_until_s - time.monotonic()) > 0:
                await asyncio.sleep(left_s)
        except BaseException:
            self._slots.release()
            raise
        if not self._used:
            self._since_s = time.monotonic()
        self._used += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the slot."""
        self._used -= 1
        self._slots.release()
        now_s = time.monotonic()
        self._worked_s += now_s - self._since_s
        self._since_s = now_s
        if self._worked_s >= _WORK_S:
            self._rest_until_s = now_s + REST * self._worked_s
            self._worked_s = 0.0
