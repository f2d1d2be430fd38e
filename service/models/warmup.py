"""Warms up a model: makes its first forecasts before any client waits for one."""

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
from model.warmup import compile_kernels, forecast_once
from service.deployment.deployment import Deployment
from service.problems import Conflict, Unavailable

log = structlog.get_logger(__name__)

_BATCH: Final = 4
_REST: Final = 1.0
"""Pause in seconds per second of warm-up work. Requests need the pauses, because warm-up work occupies a core and the interpreter lock."""
_QUIET_S: Final = 3.0
"""Seconds after which a slow start begins to log its progress."""
_REPEAT_S: Final = 15.0


def warm_first(deployment: Deployment, bundle: Path) -> float:
    """Warm up the first model before the service accepts requests. Return the duration in seconds.

    Kernels are compiled, or loaded from their cache on disk. One forecast of each kind (without rows, with events, with counters)
    initializes the networks, the encoder and the bank.

    Raises:
        BundleError: the model cannot forecast.
    """
    began = time.perf_counter()
    with _log_progress():
        compile_kernels()
        try:
            forecast_once(deployment.forecaster, deployment.forecaster.new_pool(1))
            forecast_once(deployment.forecaster)
        except Exception as error:
            raise BundleError(f"{bundle}: the model cannot forecast: {error}") from error
    return time.perf_counter() - began


@contextmanager
def _log_progress() -> Iterator[None]:
    """Log what is being done if the body of the ``with`` statement takes long."""
    done = threading.Event()

    def report() -> None:
        began = time.perf_counter()
        if done.wait(_QUIET_S):
            return
        log.info("compiling kernels: this takes about a minute, and is done once because the result is cached on disk")
        while not done.wait(_REPEAT_S):
            log.info("still compiling kernels", seconds=round(time.perf_counter() - began))

    threading.Thread(target=report, name="m3tr-warm-up", daemon=True).start()
    try:
        yield
    finally:
        done.set()


async def warm_up(
    deployment: Deployment, requests: Sequence[Request], executor: Executor, stopping: Callable[[], bool]
) -> None:
    """Forecast artificial videos, to prove that the model can forecast. Then forecast ``requests``.

    There is one artificial video of each kind: without rows, with events, and with counters.

    Raises:
        Conflict: the model cannot forecast.
        Unavailable: the service is stopping.
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
