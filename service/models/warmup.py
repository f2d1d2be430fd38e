"""A model's first forecasts, which nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from model.bins import HOUR_US
from model.forecaster import Request
from model.history import History
from model.video import Video
from service.models.deployment import Deployment
from service.problems import Conflict, Unavailable

_BATCH: Final = 4
_REST: Final = 1.0
"""Seconds of rest for each second of work, which takes the interpreter and a core from requests."""


async def warm_up(
    deployment: Deployment, requests: Sequence[Request], executor: Executor, stopping: Callable[[], bool]
) -> None:
    """Forecast a new video, which proves that the model can forecast at all, and then what is asked for.

    Raises:
        Conflict: it cannot.
        Unavailable: the service stops meanwhile.
    """
    now_us = time.time_ns() // 1000
    horizons_us = (min(HOUR_US, deployment.forecaster.manifest.max_horizon_us),)
    batches = [[Request(Video("", now_us), History({}), now_us, horizons_us)]]
    batches += [list(requests[start : start + _BATCH]) for start in range(0, len(requests), _BATCH)]
    loop = asyncio.get_running_loop()
    for batch in batches:
        if stopping():
            raise Unavailable("the service is stopping")
        began = time.perf_counter()
        await loop.run_in_executor(executor, _forecast, deployment, batch)
        await asyncio.sleep(_REST * (time.perf_counter() - began))


def _forecast(deployment: Deployment, requests: Sequence[Request]) -> None:
    try:
        deployment.forecaster.forecast(requests, pool=deployment.pool)
    except Exception as error:
        raise Conflict(f"the model cannot forecast: {error}", field="version", value=deployment.version) from error
