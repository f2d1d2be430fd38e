"""A model's first forecasts, which nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from model.errors import BundleError
from model.forecast import Request
from model.warm import compile_kernels, forecast_once
from service.deployment.deployment import Deployment
from service.problems import Conflict, Unavailable

log = structlog.get_logger(__name__)

_BATCH: Final = 4
_REST: Final = 1.0
"""Seconds of rest for each second of work, which takes the interpreter and a core from requests."""
_SILENT_S: Final = 3.0
"""Seconds after which a start says what takes so long."""
_TELL_S: Final = 15.0


def warm_first(deployment: Deployment, bundle: Path) -> float:
    """Make all that the service will ask of its first model, before anybody can ask; how many seconds it took.

    Kernels are compiled, or loaded from where they were kept, and a forecast of each kind wakes networks, encoder and bank.

    Raises:
        BundleError: the model cannot forecast.
    """
    began = time.perf_counter()
    with _told():
        compile_kernels()
        try:
            forecast_once(deployment.forecaster, deployment.forecaster.new_pool(1))
            forecast_once(deployment.forecaster)
        except Exception as error:
            raise BundleError(f"{bundle}: the model cannot forecast: {error}") from error
    return time.perf_counter() - began


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
    deployment: Deployment, requests: Sequence[Request], executor: Executor, stopping: Callable[[], bool]
) -> None:
    """Forecast made-up videos of each kind, which proves that the model can forecast at all, and then what is asked for.

    Raises:
        Conflict: it cannot.
        Unavailable: the service stops meanwhile.
    """
    steps: list[Callable[[], object]] = [lambda: forecast_once(deployment.forecaster)]
    for start in range(0, len(requests), _BATCH):
        batch = requests[start : start + _BATCH]
        steps.append(partial(deployment.forecaster.forecast, batch, pool=deployment.pool))
    loop = asyncio.get_running_loop()
    for step in steps:
        if stopping():
            raise Unavailable("the service is stopping")
        began = time.perf_counter()
        try:
            await loop.run_in_executor(executor, step)
        except Exception as error:
            raise Conflict(f"the model cannot forecast: {error}", field="version", value=deployment.version) from error
        await asyncio.sleep(_REST * (time.perf_counter() - began))
