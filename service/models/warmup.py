"""A model's first forecasts, which nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Final

import structlog

from model.errors import BundleError
from model.forecaster import Request
from service.bank.maturing import bank_entries
from service.models.deployment import Deployment
from service.models.examples import ExampleBank, requests, snapshots
from service.problems import Conflict, Unavailable
from service.settings import Settings

log = structlog.get_logger(__name__)

_BATCH: Final = 4
_REST: Final = 1.0
"""Seconds of rest for each second of work, which takes the interpreter and a core from requests."""
_SILENT_S: Final = 3.0
"""Seconds after which a start says what takes so long."""
_TELL_S: Final = 15.0


def warm_first(deployment: Deployment, settings: Settings) -> float:
    """Make all that the service will ask of its first model, before anybody can ask; how many seconds it took.

    Forecasts of every kind of video, alone and in batches, with the model's own bank and with one that has neighbours; and
    entries of the bank, where videos enter it. What is compiled on the way is kept on disk, so that the next start is quick.
    Nobody else may use the deployment meanwhile.

    Raises:
        BundleError: the model cannot forecast.
    """
    began = time.perf_counter()
    with _told():
        try:
            _use(deployment, settings)
        except Exception as error:
            raise BundleError(f"{settings.bundle}: the model cannot forecast: {error}") from error
    return time.perf_counter() - began


def _use(deployment: Deployment, settings: Settings) -> None:
    forecaster, now_us = deployment.forecaster, time.time_ns() // 1000
    asked = requests(forecaster.manifest, now_us)
    pool = forecaster.new_pool(len(asked))
    for request in asked:
        forecaster.forecast([request], pool=pool)
    # From a cached state, one that has to be rolled back, and without any.
    earlier = [Request(r.video, r.history, r.now_us + 1, r.horizons_us) for r in asked]
    full = (asked * (settings.batch_forecasts // len(asked) + 1))[: settings.batch_forecasts]
    for batch in (earlier, full):
        forecaster.forecast(batch, pool=pool)
        forecaster.forecast(batch)
    known = [snapshot for snapshot in snapshots(forecaster.manifest, now_us) if snapshot.newest_us is not None]
    content = forecaster.content([snapshot.video for snapshot in known])
    bank = forecaster.bank
    forecaster.bank = ExampleBank(content.shape[1], forecaster.manifest.shape.d_model)
    try:
        forecaster.forecast(asked)
    finally:
        forecaster.bank = bank
    if settings.bank_after_s:
        bank_entries(forecaster, known, content, now_us)


@contextmanager
def _told() -> Iterator[None]:
    """Say what goes on while it takes long."""
    done = threading.Event()

    def tell() -> None:
        began = time.perf_counter()
        if done.wait(_SILENT_S):
            return
        log.info("compiling kernels: about a minute, once; they are kept on disk")
        while not done.wait(_TELL_S):
            log.info("still compiling kernels", seconds=round(time.perf_counter() - began))

    threading.Thread(target=tell, name="m3tr-warm-up", daemon=True).start()
    try:
        yield
    finally:
        done.set()


async def warm_up(
    deployment: Deployment, wanted: Sequence[Request], executor: Executor, stopping: Callable[[], bool]
) -> None:
    """Forecast made-up videos of every kind, which proves that the model can forecast at all, and then what is asked for.

    Raises:
        Conflict: it cannot.
        Unavailable: the service stops meanwhile.
    """
    asked = requests(deployment.forecaster.manifest, time.time_ns() // 1000)
    loop = asyncio.get_running_loop()
    for some, pooled in ((asked, False), (wanted, True)):
        for start in range(0, len(some), _BATCH):
            if stopping():
                raise Unavailable("the service is stopping")
            began = time.perf_counter()
            await loop.run_in_executor(executor, _forecast, deployment, some[start : start + _BATCH], pooled)
            await asyncio.sleep(_REST * (time.perf_counter() - began))


def _forecast(deployment: Deployment, wanted: Sequence[Request], pooled: bool) -> None:
    try:
        deployment.forecaster.forecast(wanted, pool=deployment.pool if pooled else None)
    except Exception as error:
        raise Conflict(f"the model cannot forecast: {error}", field="version", value=deployment.version) from error
