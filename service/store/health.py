"""Probes the event store in the background. Readiness requests are then answered from memory, without a call to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from service.background import BackgroundTask
from service.metrics import Metrics, gauge
from service.problems import Unavailable
from service.settings import StoreSettings
from service.settings.redis_address import AddressError
from service.store.format import FormatError, check_format
from service.store.functions import connect
from service.store.redis.connection import RedisConnection
from service.store.redis.safety import Safety, find_safety

log = structlog.get_logger(__name__)

EVERY_S: Final = 1.0
"""Seconds between two probes while the store accepts writes."""
_TROUBLED_S: Final = 0.25
"""Seconds between two probes while the store does not accept writes. This is also the shortest time between any two probes."""
_SAFETY_S: Final = 30.0
MIN_SKEW_S: Final = 1.0
"""Difference in seconds between two clocks that is always allowed, even if the setting is lower."""


async def check_at_start(settings: StoreSettings, metrics: Metrics) -> None:
    """Refuse a wrong address. With ``store_safety=refuse``, also refuse a store that may lose data.

    A server that does not answer now is accepted, because it may answer later. If no Sentinel answers, the address is refused
    as wrong.

    Raises:
        StoreRefused: if the store is refused. The message gives the reason and names the setting.
    """
    assert settings.redis_url is not None
    url, deadline_s = settings.redis_url.get_secret_value(), settings.store_deadline_ms / 1000
    try:
        connection = connect(url, metrics, deadline_s=deadline_s, connections=2)
        try:
            await connection.server.check_sentinels()
            if settings.store_safety == "refuse":
                with suppress(Unavailable):
                    await connection.clustered()
                    safety = await find_safety(connection)
                    if safety is not None and (found := safety.warnings()):
                        raise StoreRefused(f"store_safety: {found[0]}; or accept that with store_safety=warn")
        finally:
            await connection.close()
    except AddressError as error:
        raise StoreRefused(str(error)) from None


class StoreRefused(Exception):
    """The service does not start with this event store. The message says why."""


class Health(BackgroundTask):
    """Probes the store and keeps the last result.

    ``reason``: why the service is not ready, or an empty text if it is ready.
    """

    def __init__(self, connection: RedisConnection, settings: StoreSettings, future_skew_s: float) -> None:
        self._connection = connection
        self._skew_s = max(future_skew_s, MIN_SKEW_S)
        self._refuse = settings.store_safety == "refuse"
        self.safety = Safety()
        self._logged: list[str] = []
        self._skewed = False
        self._format_error = ""

    @property
    def reason(self) -> str:
        """Why rows cannot be stored correctly, or cannot be stored at all. Empty if they can be stored correctly."""
        if self._connection.state.kind is not None:
            return self._connection.state.detail
        if self._connection.server.silent:
            return "the event store does not answer"
        if self.skewed:
            return (
                f"this machine's clock differs from the event store's by {abs(self._connection.state.offset_s or 0):.1f} s;"
                f" at most {self._skew_s:g} s are allowed"
            )
        if self._format_error:
            return self._format_error
        if self._refuse and (found := self.safety.warnings()):
            return found[0]
        return ""

    @property
    def skewed(self) -> bool:
        """Whether this machine's clock and the store's clock certainly differ by more than is allowed."""
        state = self._connection.state
        return state.offset_s is not None and abs(state.offset_s) - state.doubt_s > self._skew_s

    def summary(self) -> dict[str, Any]:
        """Return the readiness response's fields about the event store.

        The field ``store`` is ``ok``, ``down`` or ``refuses``. With ``refuses``, the store answers but does not accept writes.
        """
        state = self._connection.state
        return {
            "store": "down" if self._connection.server.silent else state.status,
            "store_warnings": self.safety.warnings(),
            "clock_offset_s": None if state.offset_s is None else round(state.offset_s, 3),
        }

    def readings(self) -> Sequence[Metric]:
        """Return the gauges for Prometheus. Unknown values are left out."""
        found = [gauge("m3tr_store_takes_writes", "Whether the event store accepts writes", float(not self.reason))]
        if self._connection.state.offset_s is not None:
            text = "Event store's clock minus this machine's clock"
            found.append(gauge("m3tr_store_clock_offset_seconds", text, self._connection.state.offset_s))
        lossy = GaugeMetricFamily(
            "m3tr_store_may_lose_data", "Whether the event store may lose stored data, by reason", labels=["reason"]
        )
        if self.safety.evicts is not None:
            lossy.add_metric(["eviction"], float(self.safety.evicts))
        if self.safety.persistent is not None:
            lossy.add_metric(["no_persistence"], float(not self.safety.persistent))
        return [*found, lossy]

    async def probe(self) -> None:
        """Probe the store once. Log an error if the store's clock has begun to differ too much from ours."""
        await self._connection.probe()
        if self.skewed != self._skewed:
            self._skewed = self.skewed
            if self._skewed:
                log.error(
                    "the event store's clock differs too much from this machine's",
                    offset_s=self._connection.state.offset_s,
                    allowed_s=self._skew_s,
                )

    async def check_safety(self) -> None:
        """Check the store's format, and whether the store may lose data. Each new warning is logged once."""
        try:
            await check_format(self._connection)
            self._format_error = ""
        except FormatError as error:
            self._format_error = str(error)
        except Unavailable:
            return
        found = await find_safety(self._connection)
        if found is None:
            return
        self.safety = found
        for text in found.warnings():
            if text not in self._logged:
                log.warning("the event store may lose data", reason=text)
        self._logged = found.warnings()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_safety = loop.time()
        while True:
            try:
                self._connection.troubled.clear()
                await self.probe()
                if loop.time() >= next_safety and self._connection.state.kind is None:
                    await self.check_safety()
                    next_safety = loop.time() + _SAFETY_S
            except Exception:
                log.exception("probing the event store failed")
            await asyncio.sleep(_TROUBLED_S)
            if self._connection.state.kind is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S - _TROUBLED_S):
                        await self._connection.troubled.wait()
