"""Holds the models in memory, and makes a different model active without failing a request.

load and verify -> warm up -> store the version -> switch -> drain the previous model -> keep or close it
     |               |             |
     |               |             +-- Unavailable 503  the event store does not answer: nothing changes
     |               +---------------- Conflict    409  the model cannot forecast: nothing changes
     +-------------------------------- Conflict    409  the bundle is damaged or does not fit, or its bank is in use: nothing changes
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from model.content.text import SentenceEncoder
from model.engagement.bins import HOUR_US
from model.errors import BundleError, M3TRError
from service.background import BackgroundTask
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.metrics import Metrics, counter
from service.models.active_version import ActiveVersion
from service.models.shadow import Shadow
from service.models.versions import Version, Versions, choose, misfit
from service.models.warmup import warm_up
from service.problems import Conflict, Problem, Unavailable
from service.settings import ModelSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

Load = Callable[[Path, SentenceEncoder], Deployment]
"""Loads a bundle from its folder and shares the sentence encoder of a loaded model. The function blocks, so call it in a thread."""

_COUNTED: Final = ("hits", "misses", "evictions")


class ModelRegistry:
    """Holds every model in memory: the active one, earlier ones that are kept, and the shadow's."""

    def __init__(
        self,
        engine: Engine,
        shadow: Shadow,
        active_version: ActiveVersion,
        load: Load,
        settings: ModelSettings,
        metrics: Metrics,
    ) -> None:
        self.engine, self.shadow = engine, shadow
        self._preparations: list[Callable[[Deployment], Awaitable[None]]] = []
        self._active_version, self._load_bundle = active_version, load
        self._settings, self._metrics = settings, metrics
        self._versions = Versions(settings.bundle, settings.bundles)
        self._served = engine.active.forecaster.manifest
        self._kept: OrderedDict[str, Deployment] = OrderedDict()
        self._closed_counts: Counter[str] = Counter()
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="m3tr-loader")

    def before_first_forecast(self, prepare: Callable[[Deployment], Awaitable[None]]) -> None:
        """Await ``prepare`` for each model before its first forecast that is served, compared or scored."""
        self._preparations.append(prepare)

    async def rows(self) -> list[dict[str, Any]]:
        """Return one row per version, as GET /models shows it. The served bundle comes first."""
        states = self._states()
        return [self._row(version, states) for version in await self._all()]

    async def activate(self, name: str) -> dict[str, Any]:
        """Make a version active in every replica. Return a summary of what was done."""
        return await self._change(self._activate(name, self._active_version.write))

    async def begin_shadow(self, name: str) -> dict[str, Any]:
        """Make a version the shadow of this replica."""
        return await self._change(self._begin_shadow(name))

    async def end_shadow(self) -> None:
        """Stop the shadow."""
        await self._change(self._end_shadow())

    async def follow(self) -> None:
        """Activate the stored version. If it cannot be activated, log an error and keep the active model.

        Raises Unavailable if the event store does not answer.
        """
        await self._change(self._follow())

    @property
    def tasks(self) -> Sequence[BackgroundTask]:
        """The background tasks: the poll of the stored version, and the shadow."""
        return (self._active_version, self.shadow)

    def start(self) -> None:
        """Start to poll the stored version."""
        self._active_version.start()

    async def stop(self) -> None:
        """Stop polling, and wait for a change in progress.

        A change whose model is still warming up is abandoned. Any other change is finished.
        """
        self._stopping = True
        await self._active_version.stop()
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._end_shadow()

    async def close(self) -> None:
        """Release every model. Call this only when no forecast is in progress."""
        for deployment in self.deployments():
            await self._close(deployment)
        self._loader.shutdown()
        self.shadow.close()

    def deployments(self) -> list[Deployment]:
        """Return every model in memory."""
        shadow = self.shadow.deployment
        return [self.engine.active, *self._kept.values(), *([shadow] if shadow is not None else [])]

    def _counted(self, name: str) -> int:
        """Return a counter's sum over all state pools, including the pools of closed models."""
        return self._closed_counts[name] + sum(int(getattr(deployment.pool, name)) for deployment in self.deployments())

    def readings(self) -> Sequence[Metric]:
        """Return metrics of the models in memory, their states, and the hits and misses of their state caches."""
        info = GaugeMetricFamily("m3tr_model_info", "Models in memory", labels=["model_version", "state"])
        for version, state in self._states().items():
            info.add_metric([version, state], 1)
        return [
            info,
            counter("m3tr_state_cache_hits", "Forecasts that continued from a cached state", self._counted("hits")),
            counter(
                "m3tr_state_cache_misses",
                "Forecasts that built their state from the histogram",
                self._counted("misses"),
            ),
            counter(
                "m3tr_state_cache_evictions",
                "Cached states evicted to make room for others",
                self._counted("evictions"),
            ),
        ]

    async def _change(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a change after all earlier changes have ended. Finish the change even if the caller has disconnected."""

        async def exclusive() -> T:
            async with self._changing:
                return await work

        task = asyncio.create_task(exclusive())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()

    async def _activate(self, name: str, store: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
        started, before = time.perf_counter(), self.engine.active
        version = choose(name, await self._all())
        summary = {"model_version": version.hash, "previous_version": before.version}
        if version.hash == before.version:
            await store(before.version)
            return {**summary, "changed": False, "seconds": 0.0, "warmed": 0}
        deployment = await self._ready(version)
        try:
            warmed = await self._warm(deployment)
            await store(deployment.version)
        except BaseException:
            await self._discard(deployment)
            raise
        if deployment is self.shadow.deployment:
            await self.shadow.end()
        self._kept.pop(deployment.version, None)
        self.engine.switch(deployment)
        seconds = time.perf_counter() - started
        self._metrics.model_switches.inc()
        self._metrics.model_switch_seconds.observe(seconds)
        log.info(
            "a different model is active",
            model_version=deployment.version,
            previous_version=before.version,
            warmed=warmed,
        )
        await self.engine.drained(before)
        await self._keep(before)
        return {**summary, "changed": True, "seconds": round(seconds, 3), "warmed": warmed}

    async def _begin_shadow(self, name: str) -> dict[str, Any]:
        version = choose(name, await self._all())
        if version.hash == self.engine.active.version:
            raise Conflict("this model is active; the shadow must be a different one", field="version", value=name)
        deployment = await self._ready(version)
        if deployment is not self.shadow.deployment:
            try:
                await self._prepare(deployment)
            except BaseException:
                await self._discard(deployment)
                raise
            # Remove this model from the kept models first. Otherwise, ending the previous shadow might close this model.
            self._kept.pop(deployment.version, None)
            await self._end_shadow()
            self.shadow.begin(deployment)
        return {"model_version": deployment.version, "share": self._settings.shadow_share}

    async def _end_shadow(self) -> None:
        if deployment := await self.shadow.end():
            await self._keep(deployment)

    async def _follow(self) -> None:
        stored = await self._active_version.read()
        if stored is None or stored == self.engine.active.version:
            return
        try:
            await self._activate(stored, _no_store)
        except Unavailable:
            raise
        except Problem as problem:
            self._active_version.refuse(stored)
            self._metrics.model_choice_failures.inc()
            log.error("the stored model version cannot be activated", stored=stored, reason=problem.detail)

    async def _ready(self, version: Version) -> Deployment:
        """Return the model of a version. If the model is not in memory, load it.

        Raises Conflict if the version does not fit or cannot be loaded.
        """
        for held in self.deployments():
            if held.version == version.hash:
                return held
        if version.manifest is not None and (reason := misfit(version.manifest, self._served)):
            raise Conflict(reason, field="version", value=version.hash)
        try:
            return await self._load(version)
        except Exception as error:
            self._metrics.model_load_failures.inc()
            unexpected = not isinstance(error, M3TRError | OSError)
            log.warning("a model cannot be loaded", model_version=version.hash, error=str(error), exc_info=unexpected)
            reason = version.without_paths(str(error))
            raise Conflict(f"the model cannot be loaded: {reason}", field="version", value=version.hash) from error

    async def _load(self, version: Version) -> Deployment:
        folder: Path | None = version.folder
        if version.broken is not None or folder is None:
            raise BundleError(version.broken or "it is no longer on disk")
        encoder = self.engine.active.forecaster.encoder
        deployment = await self._in_loader(lambda: self._load_bundle(folder, encoder))
        if deployment.version != version.hash:
            await self._close(deployment)
            raise BundleError(f"{folder}: the bundle changed while it was loaded")
        return deployment

    async def _warm(self, deployment: Deployment) -> int:
        """Warm up a model. Return the number of stored videos that the model has forecast."""
        horizons_us = (min(HOUR_US, deployment.forecaster.manifest.max_horizon_us),)
        requests = self.engine.newest(min(self._settings.warm_videos, deployment.pool.capacity), horizons_us)
        # The newest requests come last, so that the state cache evicts their videos last.
        await warm_up(deployment, requests[::-1], self._loader, lambda: self._stopping)
        await self._prepare(deployment)
        return len(requests)

    async def _prepare(self, deployment: Deployment) -> None:
        for prepare in self._preparations:
            await prepare(deployment)

    async def _discard(self, deployment: Deployment) -> None:
        """Close a model after a failed change, unless the model was already in memory before the change."""
        if all(deployment is not held for held in self.deployments()):
            await self._close(deployment)

    async def _keep(self, deployment: Deployment) -> None:
        self._kept[deployment.version] = deployment
        while len(self._kept) > self._settings.models_kept:
            await self._close(self._kept.popitem(last=False)[1])

    async def _close(self, deployment: Deployment) -> None:
        self._closed_counts.update({name: getattr(deployment.pool, name) for name in _COUNTED})
        try:
            await self._in_loader(deployment.close)
        except M3TRError as error:
            log.warning("a model cannot be closed", model_version=deployment.version, error=str(error))

    async def _in_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    async def _all(self) -> list[Version]:
        try:
            found = await self._in_loader(self._versions.find)
        except OSError as error:
            log.warning("the folder of models cannot be read", error=str(error))
            raise Unavailable(f"the folder of models cannot be read: {error.strerror}", part="models") from error
        known = {version.hash for version in found}
        held = [deployment.forecaster.manifest for deployment in self.deployments()]
        return [*(Version(it.version, None, it) for it in held if it.version not in known), *found]

    def _states(self) -> dict[str, str]:
        states = dict.fromkeys(self._kept, "loaded")
        if self.shadow.deployment is not None:
            states[self.shadow.deployment.version] = "shadow"
        return states | {self.engine.active.version: "active"}

    def _row(self, version: Version, states: dict[str, str]) -> dict[str, Any]:
        if version.manifest is None:
            return version.row("broken", version.broken)
        return version.row(states.get(version.manifest.version, "available"), misfit(version.manifest, self._served))


async def _no_store(version: str) -> None:
    """Store nothing, because the version was read from the store."""
