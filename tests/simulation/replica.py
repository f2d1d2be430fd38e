"""One replica of the service: the real parts, put together by the service's own ``build``, on the simulated network."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from service.context import Context
from service.deployment.deployment import Deployment
from service.settings import Settings
from service.wiring import build, new_metrics
from tests.simulation.faults import Client, Network, connect
from tests.simulation.models import Models
from tests.simulation.plan import NOW_US

T = TypeVar("T")
_owner: contextvars.ContextVar[Replica | None] = contextvars.ContextVar("owner", default=None)


def own_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let every replica know its tasks, so that a crash ends all of them: those of requests, and those that these started."""

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        owner = _owner.get()
        if owner is not None:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task

    loop.set_task_factory(factory)


def _loop_s() -> float:
    """The simulated loop's own time, so that turns do not depend on how busy the machine is."""
    return asyncio.get_running_loop().time()


class Replica:
    """State that survives a crash is here; the other state is in ``context``, which is None while the replica is down.

    ``deployed``: every model that this replica has served, the newest last.
    """

    def __init__(self, number: int, settings: Settings, models: Models, network: Network) -> None:
        self.number = number
        self.skew_us = 0
        self.model = 0
        self.deployed: list[Deployment] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.context: Context | None = None
        self._settings = settings
        self._models = models
        self._network = network

    def clock(self) -> int:
        """The replica's wall clock, microseconds."""
        return NOW_US + round(asyncio.get_running_loop().time() * 1_000_000) + self.skew_us

    def start(self) -> None:
        """Start with empty caches."""
        metrics = new_metrics(self._settings)
        deployment = self._models.deploy(self.model, self._settings.cache_videos, metrics)
        self.context = build(self._settings, metrics, deployment, "redis://simulated", self.clock, timer=_loop_s)
        connect(self.context.redis.server.backend, Client(self._network, self.number))
        self.deployed.append(deployment)
        self._as_owner(self.context.engine.batcher.start)

    def crash(self) -> None:
        """Drop everything in memory, and cancel all work."""
        self.context = None
        for task in list(self.tasks):
            task.cancel()

    def switch(self, model: int) -> None:
        """Serve another model from now on."""
        assert self.context is not None
        self.model = model
        deployment = self._models.deploy(model, self._settings.cache_videos, self.context.metrics)
        self.context.engine.active = deployment
        self.deployed.append(deployment)

    def counts(self) -> Counter[str]:
        """Counts of hits and misses of the state caches."""
        pools = [deployment.pool for deployment in self.deployed]
        return Counter(evictions=sum(p.evictions for p in pools), rollbacks=sum(p.rollbacks for p in pools))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a request."""
        return self._as_owner(lambda: asyncio.get_running_loop().create_task(work))

    def _as_owner(self, action: Callable[[], T]) -> T:
        context = contextvars.copy_context()
        context.run(_owner.set, self)
        return context.run(action)
