"""Limits the forecasts for subscribers, so that they use what is left of the model and never most of it."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final

REST: Final = 1.0
"""Seconds of rest after each second of work, so that requests are not queued behind forecasts for subscribers."""
_WORK_S: Final = 0.05
"""Seconds of work after which there is a rest."""


class PacedSlots:
    """A semaphore of ``slots`` that rests: after ``_WORK_S`` with a slot in use, no slot is given for ``REST`` times as long."""

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._used = 0
        self._since_s = self._worked_s = self._rest_until_s = 0.0

    async def __aenter__(self) -> None:
        """Wait for a slot, and for the end of the rest."""
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
