"""What readiness is answered from: every part is looked at in the background, so that probes cost nothing, however many there are.

store   does it take writes, are the clocks together (service/store/redis/health.py)
model   has its thread made a forecast lately: one that somebody asked for, or else one made up for this
bank    does it answer; without it forecasts are made all the same, so it makes nothing unready
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

import structlog
from prometheus_client.core import Metric

from model.errors import BankError
from service.background import Running
from service.forecasts.engine import Engine
from service.lifecycle import Lifecycle
from service.metrics import gauge
from service.problems import Unavailable
from service.settings import ForecastSettings
from service.store.health import Health

log = structlog.get_logger(__name__)

EVERY_S: Final = 1.0
"""Seconds between two looks at a part, and for which a forecast that was made shows that the model works."""

Word = Literal["ok", "down"]


class Asked:
    """A question put to a part again and again, never twice at a time; ``error`` is why it has no answer, None where it has."""

    def __init__(self, question: Callable[[], Awaitable[object]], patience_s: float) -> None:
        self._question, self._patience_s = question, patience_s
        self._task: asyncio.Task[object] | None = None
        self._since_s = 0.0
        self._failed: BaseException | None = None

    @property
    def error(self) -> str | None:
        """Why: what it failed with, or that it has been silent for too long."""
        if self._task is not None and time.monotonic() - self._since_s > self._patience_s:
            return "it does not answer"
        return None if self._failed is None else str(self._failed) or type(self._failed).__name__

    def ask(self) -> None:
        """Ask, unless an answer is being waited for."""
        if self._task is None:
            self._since_s = time.monotonic()
            self._task = asyncio.ensure_future(self._question())
            self._task.add_done_callback(self._answered)

    def well(self) -> None:
        """It was seen to work."""
        self._failed = None

    def give_up(self) -> None:
        """Wait for no answer any more."""
        if self._task is not None:
            self._task.cancel()

    def _answered(self, task: asyncio.Task[object]) -> None:
        self._task = None
        self._failed = asyncio.CancelledError("it was stopped") if task.cancelled() else task.exception()


class Readiness(Running):
    """Looks at model and bank; what the event store is like is ``health``'s."""

    def __init__(self, health: Health, engine: Engine, lifecycle: Lifecycle, settings: ForecastSettings) -> None:
        self._health, self._engine, self._lifecycle = health, engine, lifecycle
        self._model = Asked(engine.try_model, settings.request_deadline_ms / 1000)
        self._bank = Asked(self._count, settings.request_deadline_ms / 1000)
        self._points: int | None = None
        self._told: str | None = None

    def told(self) -> dict[str, Any]:
        """What is said of each part."""
        active = self._engine.active
        bank: Word = "down" if active.bank.down or self._bank.error else "ok"
        model: Word = "down" if self.model_error else "ok"
        return {**self._health.summary(), "model": model, "bank": bank, "model_version": active.version}

    @property
    def model_error(self) -> str | None:
        """Why no forecast can be made, None where it can."""
        return "its queue has ended" if not self._engine.batcher.alive else self._model.error

    def check(self) -> dict[str, Any]:
        """What is said of a service that is ready; raises Unavailable, with the same, where it is not."""
        found = self.told()
        if self._lifecycle.draining:
            raise Unavailable("the service is stopping", **found)
        if reason := self._health.reason:
            raise Unavailable(reason, **found)
        if error := self.model_error:
            raise Unavailable(f"the model cannot forecast: {error}", **found)
        return {"status": "ready", **found}

    def readings(self) -> Sequence[Metric]:
        """Gauges."""
        working = gauge("m3tr_model_works", "Whether the model makes forecasts", float(not self.model_error))
        if self._points is None or self._bank.error or self._engine.active.bank.down:
            return [working]
        return [working, gauge("m3tr_bank_points", "Points of the bank", self._points)]

    def look(self) -> None:
        """Look once."""
        self._bank.ask()
        if self._engine.made_s is not None and time.monotonic() - self._engine.made_s < EVERY_S:
            self._model.well()
        else:
            self._model.ask()
        if self.model_error != self._told:
            self._told = self.model_error
            if self._told is None:
                log.info("the model forecasts again")
            else:
                log.error("the model cannot forecast", error=self._told)

    async def _count(self) -> None:
        try:
            counts = await asyncio.to_thread(self._engine.active.bank.counts)
        except BankError:
            self._points = None
            raise
        self._points = counts["videos"] + counts["trajectories"]

    async def _ended(self) -> None:
        self._model.give_up()
        self._bank.give_up()

    async def _run(self) -> None:
        self._bank.ask()
        while True:
            await asyncio.sleep(EVERY_S)
            self.look()
