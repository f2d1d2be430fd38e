"""Measures how late the event loop runs. Every request waits that long in addition to its own work."""

from __future__ import annotations

import asyncio
from typing import Final

from service.background import BackgroundTask
from service.metrics import Metrics

_EVERY_S: Final = 0.1


class EventLoopLag(BackgroundTask):
    """Measures how late a timer fires."""

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.loop_lag

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due_s))
