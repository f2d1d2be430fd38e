"""Checks whether the service is ready. The checks run in the background, so that probes are cheap.

store   checks that the store accepts writes, and that its clock agrees with this machine's (service/store/health.py)
model   checks that the model's thread made a forecast in the last second; if no forecast was requested, a test forecast is made
bank    checks that the bank answers; the service is ready even if the bank does not answer, because forecasts do not need the bank
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

import structlog
from prometheus_client.core import Metric

from model.errors import BankError
from service.background import BackgroundTask
from service.forecasts.engine import Engine
from service.lifecycle import Lifecycle
from service.metrics import gauge
from service.problems import Unavailable
from service.settings import ForecastSettings
from service.store.health import Health

log = structlog.get_logger(__name__)

EVERY_S: Final = 1.0
"""Seconds between two checks. For this time, a finished forecast counts as proof that the model works."""

Word = Literal["ok", "down"]


class PartCheck:
    """A repeated check of one component. Only one run of the check is in progress at a time.

    A run fails if it takes longer than ``patience_s`` seconds.
    """

    def __init__(self, check: Callable[[], Awaitable[object]], patience_s: float) -> None:
        self._check, self._patience_s = check, patience_s
        self._task: asyncio.Task[object] | None = None
        self._since_s = 0.0
        self._failed: BaseException | None = None

    @property
    def error(self) -> str | None:
        """Reason why the last check failed or takes too long, or None if the component works."""
        if self._task is not None and time.monotonic() - self._since_s > self._patience_s:
            return "it does not answer"
        return None if self._failed is None else str(self._failed) or type(self._failed).__name__

    def start(self) -> None:
        """Start a check, unless one is running."""
        if self._task is None:
            self._since_s = time.monotonic()
            self._task = asyncio.ensure_future(self._check())
            self._task.add_done_callback(self._done)

    def mark_ok(self) -> None:
        """Record that the component works."""
        self._failed = None

    def cancel(self) -> None:
        """Cancel a running check."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[object]) -> None:
        self._task = None
        self._failed = asyncio.CancelledError("it was stopped") if task.cancelled() else task.exception()


class Readiness(BackgroundTask):
    """Checks the model and the bank. ``Health`` checks the event store."""

    def __init__(self, health: Health, engine: Engine, lifecycle: Lifecycle, settings: ForecastSettings) -> None:
        self._health, self._engine, self._lifecycle = health, engine, lifecycle
        self._model = PartCheck(engine.try_model, settings.request_deadline_ms / 1000)
        self._bank = PartCheck(self._count, settings.request_deadline_ms / 1000)
        self._points: int | None = None
        self._logged: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return the state of store, model and bank."""
        active = self._engine.active
        bank: Word = "down" if active.bank.down or self._bank.error else "ok"
        model: Word = "down" if self.model_error else "ok"
        return {**self._health.summary(), "model": model, "bank": bank, "model_version": active.version}

    @property
    def model_error(self) -> str | None:
        """Reason why the model cannot forecast, or None if the model can forecast."""
        return "its queue has stopped" if not self._engine.batcher.alive else self._model.error

    def check(self) -> dict[str, Any]:
        """Return the summary if the service is ready. Otherwise raise Unavailable, which holds the summary."""
        found = self.summary()
        if self._lifecycle.draining:
            raise Unavailable("the service is stopping", **found)
        if reason := self._health.reason:
            raise Unavailable(reason, **found)
        if error := self.model_error:
            raise Unavailable(f"the model cannot forecast: {error}", **found)
        return {"status": "ready", **found}

    def readings(self) -> Sequence[Metric]:
        """Return the gauges of the model and the bank."""
        working = gauge("m3tr_model_works", "Whether the model makes forecasts", float(not self.model_error))
        if self._points is None or self._bank.error or self._engine.active.bank.down:
            return [working]
        return [working, gauge("m3tr_bank_points", "Number of points in the bank", self._points)]

    def check_parts(self) -> None:
        """Start the checks that are needed, and log if the model's state has changed."""
        self._bank.start()
        if self._engine.made_s is not None and time.monotonic() - self._engine.made_s < EVERY_S:
            self._model.mark_ok()
        else:
            self._model.start()
        if self.model_error != self._logged:
            self._logged = self.model_error
            if self._logged is None:
                log.info("the model forecasts again")
            else:
                log.error("the model cannot forecast", error=self._logged)

    async def _count(self) -> None:
        try:
            counts = await asyncio.to_thread(self._engine.active.bank.counts)
        except BankError:
            self._points = None
            raise
        self._points = counts["videos"] + counts["trajectories"]

    async def _ended(self) -> None:
        self._model.cancel()
        self._bank.cancel()

    async def _run(self) -> None:
        self._bank.start()
        while True:
            await asyncio.sleep(EVERY_S)
            self.check_parts()
