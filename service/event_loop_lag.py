"""Measures how late the event loop runs. This delay adds to the duration of every request."""

from __future__ import annotations

import asyncio
from typing import Final

from service.background import BackgroundTask
from service.metrics import Metrics

_EVERY_S: Final = 0.1


class EventLoopLag(BackgroundTask):
    """Measures how late the event loop fires a timer."""

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.loop_lag

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due_s))
